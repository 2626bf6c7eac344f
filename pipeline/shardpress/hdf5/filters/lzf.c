/* LZF decoder for the format of Marc Lehmann's LibLZF, which h5py writes as filter 32000.
 *
 * A stream is a sequence of pieces. If the first byte c of a piece is below 32, c + 1 literal bytes follow. Otherwise
 * the piece repeats earlier output. The upper three bits of c are the length minus 2; if they are 7, the next byte is
 * added to the length. The lower five bits of c and the following byte are the distance minus 1.
 *
 * The input is untrusted. No input makes the decoder read or write outside the two buffers.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <string.h>

#define LITERAL 32 /* maximum number of bytes in a literal piece */
#define STRIDE 16  /* bytes to copy at a time, if the output has room for that many extra bytes */

/* Copy `n` bytes from `distance` bytes earlier. If the ranges overlap, the bytes just written are repeated. */
static void repeat(unsigned char *to, Py_ssize_t distance, Py_ssize_t n, Py_ssize_t room)
{
    Py_ssize_t done = 0;
    if (room >= n + STRIDE) {
        if (distance < STRIDE) { /* output with this period also has every multiple as a period */
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

/* Decode a stream, and return the number of bytes; -1 if the stream is damaged or the output is too small. */
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
                        "damaged, or decompresses to more than the expected %zd bytes", most);
}

static PyMethodDef methods[] = {
    {"undo_into", undo_into, METH_VARARGS,
     "Decode LZF.\n\nParameters\n----------\ndata : buffer\nout : buffer\n    Buffer for the result. Bytes after the "
     "result may change as well.\n\nReturns\n-------\nint\n    Size of the result in bytes.\n\nRaises\n------\n"
     "ValueError\n    If the data are damaged, or do not fit into `out` when decoded.\n"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "lzf", "LZF decoder without the GIL.", -1, methods};

PyMODINIT_FUNC PyInit_lzf(void)
{
    return PyModule_Create(&definition);
}
