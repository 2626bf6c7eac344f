/* LZF undone: the format of Marc Lehmann's LibLZF, which h5py's filter 32000 writes.
 *
 * A stream is a row of pieces. A first byte c below 32 is followed by c + 1 bytes as they are. Any other one repeats what
 * came before: its upper three bits are the length less 2, where 7 means that another byte adds to it, its lower five bits
 * and the byte that follows the distance less 1.
 *
 * The input may be anybody's: nothing is read or written outside of the two buffers, whatever it says.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <string.h>

#define LITERAL 32 /* bytes of a piece at most */
#define STRIDE 16  /* bytes that are copied at once, where there is room for that many too many */

/* `n` bytes from `distance` bytes before. Where these overlap, what was just written is repeated. */
static void repeat(unsigned char *to, Py_ssize_t distance, Py_ssize_t n, Py_ssize_t room)
{
    Py_ssize_t done = 0;
    if (room >= n + STRIDE) {
        if (distance < STRIDE) { /* what is repeated every `distance` bytes is so every multiple of that, too */
            for (; done < STRIDE; done++)
                to[done] = to[done - distance];
            distance *= (STRIDE + distance - 1) / distance;
        }
        for (; done < n; done += STRIDE)
            memcpy(to + done, to + done - distance, STRIDE);
    }
    for (; done < n; done++)
        to[done] = to[done - distance];
}

/* How many bytes came out; -1 when the stream is damaged or more would. */
static Py_ssize_t undo(const unsigned char *in, Py_ssize_t n_in, unsigned char *out, Py_ssize_t n_out)
{
    const unsigned char *end = in + n_in;
    unsigned char *to = out, *out_end = out + n_out;
    while (in < end) {
        Py_ssize_t n = *in++;
        if (n < LITERAL) {
            n++;
            if (n > end - in || n > out_end - to)
                return -1;
            if (end - in >= LITERAL && out_end - to >= LITERAL)
                memcpy(to, in, LITERAL);
            else
                memcpy(to, in, n);
            in += n;
        } else {
            Py_ssize_t distance = ((n & 31) << 8) + 1;
            n = (n >> 5) + 2;
            if (n == 9 && in < end)
                n += *in++;
            if (in == end)
                return -1;
            distance += *in++;
            if (distance > to - out || n > out_end - to)
                return -1;
            repeat(to, distance, n, out_end - to);
        }
        to += n;
    }
    return to - out;
}

static PyObject *undo_into(PyObject *module, PyObject *arguments)
{
    Py_buffer in, out;
    Py_ssize_t n, most;
    if (!PyArg_ParseTuple(arguments, "y*w*", &in, &out))
        return NULL;
    most = out.len;
    Py_BEGIN_ALLOW_THREADS
    n = undo(in.buf, in.len, out.buf, most);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    if (n >= 0)
        return PyLong_FromSsize_t(n);
    return PyErr_Format(PyExc_ValueError,
                        "compressed data that are damaged or unfold to too much, expected %zd bytes at most", most);
}

static PyMethodDef methods[] = {
    {"undo_into", undo_into, METH_VARARGS,
     "Undo LZF.\n\nParameters\n----------\ndata : buffer\nout : buffer\n    Filled from its start on; what lies behind the "
     "result may change as well.\n\nReturns\n-------\nint\n    Bytes of the result.\n\nRaises\n------\nValueError\n    When "
     "the data are damaged, or unfold to more than `out` holds.\n"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "lzf", "LZF undone, without Python's lock.", -1, methods};

PyMODINIT_FUNC PyInit_lzf(void)
{
    return PyModule_Create(&definition);
}
