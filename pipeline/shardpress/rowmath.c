/* Preparation of rows: each row is divided by its size, and values are replaced by their logarithms or ranks.
 *
 * NumPy takes two to ten times as long, and its logarithms differ between processors in their last bits. These functions
 * use only operations that IEEE 754 defines exactly, in a fixed order, and give the same bits on all processors. This
 * needs -ffp-contract=off.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16      /* independent sums of a row */
#define BLOCK_ROWS 64 /* rows that are ranked together */

/* Compile functions for several instruction sets. The dynamic linker of glibc chooses one when the module is loaded. */
#if defined(CLONES) /* by a test */
#elif defined(__x86_64__) && defined(__GLIBC__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

typedef enum { NONE, MEDIAN, TOTAL, NORM, MAX } Kind;
static const char *const KINDS[] = {"none", "median", "total", "norm", "max"};
#define N_KINDS 5

typedef struct {
    Py_ssize_t n_rows, n_columns;
    Kind kind;
    double target;
    void *scratch; /* memory for a row, if the kind is MEDIAN */
    int takes_logarithm;
} Request;

/* Increasing values of each column and their ranks. A column with fewer knots than others repeats the last one. */
typedef struct {
    Py_ssize_t n_columns, n_knots;
    const double *knots, *ranks;
} Tables;

#define VALUE float
#define BITS uint32_t
#define KEY int32_t
#define MANTISSA 23
#define BIAS 127
#define N_TERMS 4
#define NAME(name) name##_float
#include "rowmath.h"

#define VALUE double
#define BITS uint64_t
#define KEY int64_t
#define MANTISSA 52
#define BIAS 1023
#define N_TERMS 10
#define NAME(name) name##_double
#include "rowmath.h"

/* Set the kind for its name, or raise ValueError. */
static int find_kind(const char *name, Kind *kind)
{
    for (int i = 0; i < N_KINDS; i++)
        if (strcmp(name, KINDS[i]) == 0) {
            *kind = (Kind)i;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "unknown kind of size '%s'", name);
    return 0;
}

/* Get a contiguous array of two dimensions with one of these formats; raise TypeError, ValueError or BufferError for
 * anything else. */
static int get_array(PyObject *object, Py_buffer *view, int flags, const char *formats)
{
    if (PyObject_GetBuffer(object, view, flags | PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0)
        return 0;
    if (view->ndim == 2 && strlen(view->format) == 1 && strchr(formats, view->format[0]))
        return 1;
    PyErr_Format(PyExc_TypeError, "expected 2 dimensions with a format of '%s', found %d of '%s'", formats, view->ndim,
                 view->format);
    PyBuffer_Release(view);
    return 0;
}

static PyObject *prepare(PyObject *module, PyObject *arguments)
{
    PyObject *rows;
    Py_buffer view;
    const char *name;
    Request request = {0};
    if (!PyArg_ParseTuple(arguments, "Osdp", &rows, &name, &request.target, &request.takes_logarithm))
        return NULL;
    if (!find_kind(name, &request.kind) || !get_array(rows, &view, PyBUF_WRITABLE, "fd"))
        return NULL;
    request.n_rows = view.shape[0];
    request.n_columns = view.shape[1];
    if (request.kind == MEDIAN) {
        request.scratch = PyMem_Malloc(request.n_columns * view.itemsize);
        if (request.scratch == NULL) {
            PyBuffer_Release(&view);
            return PyErr_NoMemory();
        }
    }
    Py_BEGIN_ALLOW_THREADS
    if (view.format[0] == 'f')
        prepare_float(view.buf, &request);
    else
        prepare_double(view.buf, &request);
    Py_END_ALLOW_THREADS
    PyMem_Free(request.scratch);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

/* Check that tables belong to rows, and replace the rows. */
static PyObject *rank_with(const Py_buffer *rows, const Py_buffer *knots, const Py_buffer *ranks)
{
    const Tables tables = {rows->shape[1], knots->shape[1], knots->buf, ranks->buf};
    if (knots->shape[0] != tables.n_columns || ranks->shape[0] != tables.n_columns || tables.n_knots < 1 ||
        ranks->shape[1] != tables.n_knots)
        return PyErr_Format(PyExc_ValueError, "expected knots and ranks of %zd columns, with equal numbers of knots",
                            tables.n_columns);
    Py_BEGIN_ALLOW_THREADS
    if (rows->format[0] == 'f')
        replace_by_ranks_float(rows->buf, rows->shape[0], &tables);
    else
        replace_by_ranks_double(rows->buf, rows->shape[0], &tables);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *replace_by_ranks(PyObject *module, PyObject *arguments)
{
    PyObject *rows, *knots, *ranks, *found = NULL;
    Py_buffer row_view, knot_view, rank_view;
    if (!PyArg_ParseTuple(arguments, "OOO", &rows, &knots, &ranks))
        return NULL;
    if (!get_array(rows, &row_view, PyBUF_WRITABLE, "fd"))
        return NULL;
    if (get_array(knots, &knot_view, 0, "d")) {
        if (get_array(ranks, &rank_view, 0, "d")) {
            found = rank_with(&row_view, &knot_view, &rank_view);
            PyBuffer_Release(&rank_view);
        }
        PyBuffer_Release(&knot_view);
    }
    PyBuffer_Release(&row_view);
    return found;
}

static PyMethodDef methods[] = {
    {"prepare", prepare, METH_VARARGS,
     "Prepare rows in place.\n\nParameters\n----------\nrows : ndarray of shape (n_rows, n_columns), float32 or float64\n"
     "    Contiguous rows. NaN and Inf stay as they are.\nkind : {'none', 'median', 'total', 'norm', 'max'}\n    Size by "
     "which each row is divided: the absolute value of its median, its sum of absolute values, its\n    Euclidean norm "
     "or its largest absolute value. NaN is ignored. A row whose size is 0 or not finite is\n    not divided.\ntarget : "
     "float\n    Size of the rows afterwards.\ntakes_logarithm : bool\n    Whether each value x is then replaced by "
     "sign(x) log(1 + abs(x)). The error is at most 2 units in the last\n    place.\n\nRaises\n------\nTypeError, "
     "ValueError, BufferError\n    If the rows or the kind are not as described.\n"},
    {"replace_by_ranks", replace_by_ranks, METH_VARARGS,
     "Replace values by their ranks, in place.\n\nParameters\n----------\nrows : ndarray of shape (n_rows, n_columns), "
     "float32 or float64\n    Contiguous rows. NaN stays NaN.\nknots, ranks : ndarray of shape (n_columns, n_knots), "
     "float64\n    Increasing values of each column and their ranks. Ranks between them are interpolated linearly; they "
     "are\n    0 below the first knot and 1 above the last one.\n\nRaises\n------\nTypeError, ValueError, "
     "BufferError\n    If an array is not as described.\n"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "rowmath", "Preparation of rows.", -1, methods};

PyMODINIT_FUNC PyInit_rowmath(void)
{
    return PyModule_Create(&definition);
}
