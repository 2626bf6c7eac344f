/* Preparation of rows: each row is divided by its size, and values are replaced by their logarithms.
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

#define LANES 16 /* independent sums of a row */

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
    int64_t *scratch; /* memory for a row, if the kind is MEDIAN */
    int takes_logarithm;
} Request;

#define MANTISSA 52 /* stored bits of a double's mantissa */
#define BIAS 1023   /* of a double's exponent */
#define N_TERMS 10  /* of the series of the logarithm */

/* -- preparation ---------------------------------------------------------------------------------------------- */

static inline uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double value_of(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Return log(1 + |x|) with the sign of x. NaN and Inf stay as they are.
 *
 * If 1 + |x| = 2^n (1 + f), with 1 + f from sqrt(1/2) to sqrt(2), then log(1 + |x|) = n log(2) + log(1 + f). With
 * s = f / (2 + f), log(1 + f) = 2 atanh(s) = 2 s + s r = f - s (f - r), where r = 2/3 s^2 + 2/5 s^4 + ... Here, s^2 is
 * at most 0.0295. f is computed from |x|, and not from the rounded 1 + |x|, so that small values keep their digits. */
static inline __attribute__((always_inline)) double logarithm(double x)
{
    const uint64_t one = (uint64_t)BIAS << MANTISSA;
    const uint64_t sign = bits_of(x) & (uint64_t)1 << 63;
    const uint64_t magnitude = bits_of(x) ^ sign;
    const double a = value_of(magnitude);
    const uint64_t to_exponent = one - bits_of(0.70710678118654752);
    const uint64_t n = ((bits_of(1 + a) + to_exponent) >> MANTISSA) - BIAS;
    const uint64_t shorter = n < BIAS ? n : BIAS; /* 2^-n would be below all normal numbers; 0 is close enough */
    const double f = value_of(magnitude - (n << MANTISSA)) + (value_of(one - (shorter << MANTISSA)) - 1);
    const double s = f / (2 + f);
    double r = 0;
    for (int k = 2 * N_TERMS + 1; k > 1; k -= 2)
        r = (r + 2.0 / k) * (s * s);
    /* n as a number: the last bits of 2^MANTISSA + n are n */
    const uint64_t shift = (uint64_t)(BIAS + MANTISSA) << MANTISSA;
    const double exponent = value_of(shift | n) - value_of(shift);
    const double found = exponent * 0.69314718055994531 + (f - s * (f - r));
    return value_of(bits_of(a < INFINITY ? found : a) | sign);
}

/* Add a value to the size of its row. NaN is ignored. */
static inline __attribute__((always_inline)) double add_to_size(double size, double value, Kind kind)
{
    const double magnitude = value == value ? fabs(value) : 0.0;
    if (kind == MAX)
        return magnitude > size ? magnitude : size;
    return size + (kind == NORM ? magnitude * magnitude : magnitude);
}

/* Return the size of a row. Sums have a fixed order, so that vectors of any length give the same bits. */
static inline __attribute__((always_inline)) double size_of(const double *row, Py_ssize_t n, Kind kind)
{
    double lanes[LANES] = {0}, size = 0;
    Py_ssize_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] = add_to_size(lanes[j], row[i + j], kind);
    for (int j = 0; i + j < n; j++)
        lanes[j] = add_to_size(lanes[j], row[i + j], kind);
    for (int j = 0; j < LANES; j++)
        size = kind == MAX ? (lanes[j] > size ? lanes[j] : size) : size + lanes[j];
    return kind == NORM ? sqrt(size) : size;
}

/* Write the keys of a row: integers in the order of the values. Return the number of values that are not NaN; the keys
 * of NaN are the largest. */
static inline __attribute__((always_inline)) Py_ssize_t find_keys(const double *row, Py_ssize_t n, int64_t *keys)
{
    uint64_t n_present = 0;
    for (Py_ssize_t k = 0; k < n; k++) {
        const int64_t bits = (int64_t)bits_of(row[k]);
        const int64_t key = bits < 0 ? bits ^ INT64_MAX : bits;
        keys[k] = row[k] == row[k] ? key : INT64_MAX;
        n_present += row[k] == row[k];
    }
    return (Py_ssize_t)n_present;
}

static inline __attribute__((always_inline)) Py_ssize_t count_below(const int64_t *keys, Py_ssize_t n, int64_t pivot)
{
    uint64_t found = 0;
    for (Py_ssize_t k = 0; k < n; k++)
        found += keys[k] < pivot;
    return (Py_ssize_t)found;
}

/* Return the largest key below a pivot, which must exist. The distances of other keys wrap around to large numbers. */
static inline __attribute__((always_inline)) int64_t last_below(const int64_t *keys, Py_ssize_t n, int64_t pivot)
{
    const uint64_t last = (uint64_t)pivot - 1;
    uint64_t nearest = ~(uint64_t)0;
    for (Py_ssize_t k = 0; k < n; k++) {
        const uint64_t distance = last - (uint64_t)keys[k];
        nearest = distance < nearest ? distance : nearest;
    }
    return (int64_t)(last - nearest);
}

/* Return the smallest key that is not below a pivot, which must exist. */
static inline __attribute__((always_inline)) int64_t first_from(const int64_t *keys, Py_ssize_t n, int64_t pivot)
{
    uint64_t nearest = ~(uint64_t)0;
    for (Py_ssize_t k = 0; k < n; k++) {
        const uint64_t distance = (uint64_t)keys[k] - (uint64_t)pivot;
        nearest = distance < nearest ? distance : nearest;
    }
    return (int64_t)((uint64_t)pivot + nearest);
}

static inline double value_of_key(int64_t key)
{
    return value_of((uint64_t)(key < 0 ? key ^ INT64_MAX : key));
}

/* Return the absolute value of the median of a row without NaN; 0 if there are only NaN. `keys` is scratch memory.
 *
 * The key of rank `rank` is `low` or between `low` and `high`; `n_low` and `n_high` keys are below these bounds. Each
 * step counts the keys below a pivot, and moves a bound there. Pivots are interpolated, which takes a few steps for most
 * rows, and every other one is the middle, which takes at most two steps per bit for all rows. */
static inline __attribute__((always_inline)) double median_of(const double *row, Py_ssize_t n, int64_t *keys)
{
    const Py_ssize_t n_present = find_keys(row, n, keys), rank = n_present / 2;
    if (n_present == 0)
        return 0;
    int64_t low = first_from(keys, n, -INT64_MAX - 1);
    int64_t high = last_below(keys, n, INT64_MAX) + 1;
    Py_ssize_t n_low = 0, n_high = n_present;
    for (int step = 0; n_low < rank && (uint64_t)high - (uint64_t)low > 1; step++) {
        const uint64_t width = (uint64_t)high - (uint64_t)low;
        uint64_t distance = width / 2;
        if (step % 2 == 0)
            distance = (uint64_t)((double)width * (double)(rank - n_low) / (double)(n_high - n_low));
        if (distance == 0 || distance >= width)
            distance = 1;
        const int64_t pivot = (int64_t)((uint64_t)low + distance);
        const Py_ssize_t n_below = count_below(keys, n, pivot);
        if (n_below > rank) {
            high = pivot;
            n_high = n_below;
        } else {
            low = pivot;
            n_low = n_below;
        }
    }
    const int64_t second = first_from(keys, n, low);
    int64_t first = second;
    if (n_present % 2 == 0 && count_below(keys, n, second) == rank)
        first = last_below(keys, n, second);
    return fabs(value_of_key(first) / 2 + value_of_key(second) / 2);
}

/* Multiply each row by target / size, unless its size is 0 or not finite or the factor overflows. Then take logarithms
 * if requested. */
CLONES static void prepare_rows(double *rows, const Request *request)
{
    const Py_ssize_t n = request->n_columns;
    for (Py_ssize_t i = 0; i < request->n_rows; i++, rows += n) {
        double size = 0;
        switch (request->kind) {
        case NONE: size = request->target; break;
        case MEDIAN: size = median_of(rows, n, request->scratch); break;
        case TOTAL: size = size_of(rows, n, TOTAL); break;
        case NORM: size = size_of(rows, n, NORM); break;
        case MAX: size = size_of(rows, n, MAX); break;
        }
        double factor = request->target / size;
        if (!(size > 0 && size < INFINITY && factor < INFINITY))
            factor = 1;
        if (request->takes_logarithm)
            for (Py_ssize_t k = 0; k < n; k++)
                rows[k] = logarithm(rows[k] * factor);
        else
            for (Py_ssize_t k = 0; k < n; k++)
                rows[k] *= factor;
    }
}

/* -- the module ----------------------------------------------------------------------------------------------- */

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

/* Get writable, contiguous rows of double; raise TypeError, ValueError or BufferError for anything else. */
static int get_rows(PyObject *object, Py_buffer *view)
{
    if (PyObject_GetBuffer(object, view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0)
        return 0;
    if (view->ndim == 2 && strcmp(view->format, "d") == 0)
        return 1;
    PyErr_Format(PyExc_TypeError, "expected 2 dimensions with the format 'd', found %d of '%s'", view->ndim,
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
    if (!find_kind(name, &request.kind) || !get_rows(rows, &view))
        return NULL;
    request.n_rows = view.shape[0];
    request.n_columns = view.shape[1];
    if (request.kind == MEDIAN) {
        request.scratch = PyMem_Malloc(request.n_columns * sizeof(int64_t));
        if (request.scratch == NULL) {
            PyBuffer_Release(&view);
            return PyErr_NoMemory();
        }
    }
    Py_BEGIN_ALLOW_THREADS
    prepare_rows(view.buf, &request);
    Py_END_ALLOW_THREADS
    PyMem_Free(request.scratch);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"prepare", prepare, METH_VARARGS,
     "Prepare rows in place.\n\nParameters\n----------\nrows : ndarray of shape (n_rows, n_columns), float64\n"
     "    Contiguous rows. NaN and Inf stay as they are.\nkind : {'none', 'median', 'total', 'norm', 'max'}\n    Size by "
     "which each row is divided: the absolute value of its median, its sum of absolute values, its\n    Euclidean norm "
     "or its largest absolute value. NaN is ignored. A row whose size is 0 or not finite is\n    not divided.\ntarget : "
     "float\n    Size of the rows afterwards.\ntakes_logarithm : bool\n    Whether each value x is then replaced by "
     "sign(x) log(1 + abs(x)). The error is at most 2 units in the last\n    place.\n\nRaises\n------\nTypeError, "
     "ValueError, BufferError\n    If the rows or the kind are not as described.\n"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "rowmath", "Preparation of rows.", -1, methods};

PyMODINIT_FUNC PyInit_rowmath(void)
{
    return PyModule_Create(&definition);
}
