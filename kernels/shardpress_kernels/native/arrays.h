/* Checks of the shapes and the order of NumPy arrays; Theano checks their dtypes and numbers of dimensions. */
static int is_as(PyArrayObject *array, const char *name, npy_intp n, npy_intp m)
{
    const npy_intp *shape = PyArray_DIMS(array);
    int n_dims = PyArray_NDIM(array);
    if (shape[0] != n || (n_dims > 1 && shape[1] != m)) {
        PyErr_Format(PyExc_ValueError, "%s has shape (%zd, %zd), expected (%zd, %zd)", name, (Py_ssize_t)shape[0],
                     (Py_ssize_t)(n_dims > 1 ? shape[1] : 1), (Py_ssize_t)n, (Py_ssize_t)m);
        return 0;
    }
    if (!PyArray_IS_C_CONTIGUOUS(array)) {
        PyErr_Format(PyExc_ValueError, "%s is not contiguous in C order, expected a C-contiguous array", name);
        return 0;
    }
    return 1;
}

static int are_row_numbers(PyArrayObject *numbers, npy_intp n_rows)
{
    const npy_int64 *values = (const npy_int64 *)PyArray_DATA(numbers);
    if (!is_as(numbers, "the minibatch", PyArray_DIM(numbers, 0), 1))
        return 0;
    for (npy_intp i = 0; i < PyArray_DIM(numbers, 0); i++)
        if (values[i] < 0 || values[i] >= n_rows) {
            PyErr_Format(PyExc_IndexError, "row %lld of the minibatch, expected one of the %zd resident rows",
                         (long long)values[i], (Py_ssize_t)n_rows);
            return 0;
        }
    return 1;
}

/* Set the rows. Row numbers, center and scale can be NULL. */
static int take_rows(Rows *rows, PyArrayObject *values, PyArrayObject *numbers, PyArrayObject *center,
                     PyArrayObject *scale)
{
    npy_intp n_rows = PyArray_DIM(values, 0), n_inputs = PyArray_DIM(values, 1);
    if (!is_as(values, "the array of rows", n_rows, n_inputs) || (numbers && !are_row_numbers(numbers, n_rows)))
        return 0;
    if (center && (!is_as(center, "center", n_inputs, 1) || !is_as(scale, "scale", n_inputs, 1)))
        return 0;
    rows->values = (const ROW *)PyArray_DATA(values);
    rows->numbers = numbers ? (const npy_int64 *)PyArray_DATA(numbers) : 0;
    rows->center = center ? (const SCALING *)PyArray_DATA(center) : 0;
    rows->scale = center ? (const SCALING *)PyArray_DATA(scale) : 0;
    rows->n_rows = numbers ? PyArray_DIM(numbers, 0) : n_rows;
    rows->n_inputs = n_inputs;
    return 1;
}

/* Set the weights, the bias and, unless it has no mirror, the mirror's bias of a layer. */
static int take_layer(Weights *w, long n_inputs, PyArrayObject *const *given, const char *const *names, int has_mirror)
{
    npy_intp n_features = PyArray_DIM(given[0], 1);
    if (!is_as(given[0], names[0], n_inputs, n_features) || !is_as(given[1], names[1], n_features, 1) ||
        (has_mirror && !is_as(given[2], names[2], n_inputs, 1)))
        return 0;
    w->W = (const float *)PyArray_DATA(given[0]);
    w->b_hidden = (const float *)PyArray_DATA(given[1]);
    w->b_output = has_mirror ? (const float *)PyArray_DATA(given[2]) : 0;
    w->n_inputs = n_inputs;
    w->n_features = n_features;
    return 1;
}

/* Set the parameters, which are in the order of NAMES: three for each layer, then the gain, then two of the head. */
static int take_model(Model *m, const Rows *rows, PyArrayObject *const *parameters)
{
    static const char *const names[] = {NAMES};
    long n = rows->n_inputs;
    for (int l = 0; l < N_LAYERS; l++) {
        if (!take_layer(&m->layers[l], n, parameters + 3 * l, names + 3 * l, 1))
            return 0;
        n = m->layers[l].n_features;
    }
    if (HAS_GAIN && !is_as(parameters[3 * N_LAYERS], names[3 * N_LAYERS], n, 1))
        return 0;
    m->gain = HAS_GAIN ? (const float *)PyArray_DATA(parameters[3 * N_LAYERS]) : 0;
    if (HAS_HEAD)
        return take_layer(&m->layers[N_LAYERS], n, parameters + FIRST_OF_HEAD, names + FIRST_OF_HEAD, 0);
    return 1;
}
