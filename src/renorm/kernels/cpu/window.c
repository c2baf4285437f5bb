/* The statistics of a window, as functions of the Python module: tensors that lie as window.h says. */
#include "module.h"

#include <string.h>

/* The code for the dtype of a tensor; NULL, and an error, if there is none. */
static const window_code *code_for(PyObject *t) {
    const enum dtype dtype = dtype_of(t);
    if (dtype == FLOAT32 || dtype == FLOAT64) return &in_use()->window[dtype == FLOAT64];
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "no code for this dtype");
    return NULL;
}

/* The code to call once all arguments are read, or NULL and an error. */
static const window_code *ready(PyObject *t, bool possible) {
    const window_code *code = PyErr_Occurred() ? NULL : code_for(t);
    if (code && !possible) PyErr_SetString(PyExc_ValueError, "these sizes do not go together");
    return possible ? code : NULL;
}

/* x, shares, means, out; N, channels, S, k, G, out_apart. */
static PyObject *mean_patch(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    boxes b;
    arguments a = {args};
    (void)self;
    if (!count_is(count, 10)) return NULL;
    b.x = address(&a);
    b.shares = address(&a);
    b.means = address(&a);
    b.out = address(&a);
    b.N = integer(&a);
    b.channels = integer(&a);
    b.S = integer(&a);
    b.k = integer(&a);
    b.G = integer(&a);
    b.out_apart = integer(&a);
    const window_code *code = ready(args[0], b.N > 0 && b.G > 0 && b.channels % b.G == 0);
    if (!code) return NULL;
    b.threads = threads_for(b.N * b.channels * b.S);
    Py_BEGIN_ALLOW_THREADS
    code->mean_patch(&b);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* What both kinds of compensation begin with: mean, var, offset, rest, inverse_var, bias; C, L. */
static lags begun(arguments *a) {
    lags l = {.G = 1};
    l.mean = address(a);
    l.var = address(a);
    l.offset = address(a);
    l.rest = address(a);
    l.inverse_var = address(a);
    l.bias = address(a);
    l.C = integer(a);
    l.L = integer(a);
    return l;
}

/* The same, then W, mean_patch, derivative; G, K. */
static PyObject *derived(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    arguments a = {args};
    (void)self;
    if (!count_is(count, 13)) return NULL;
    lags l = begun(&a);
    l.W = address(&a);
    l.mean_patch = address(&a);
    l.derivative = address(&a);
    l.G = integer(&a);
    l.K = integer(&a);
    const window_code *code = ready(args[0], l.G > 0 && l.C % l.G == 0);
    if (!code) return NULL;
    l.threads = threads_for(l.C * l.K * l.L);
    Py_BEGIN_ALLOW_THREADS
    code->derived(&l);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* The same, then products, outputs; s. */
static PyObject *sampled(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    arguments a = {args};
    (void)self;
    if (!count_is(count, 11)) return NULL;
    lags l = begun(&a);
    l.products = address(&a);
    l.outputs = address(&a);
    l.s = integer(&a);
    const window_code *code = ready(args[0], !l.outputs == !l.inverse_var);
    if (!code) return NULL;
    code->sampled(&l);
    Py_RETURN_NONE;
}

/* out, mean, var, lag_mean, lag_var, weights; C, L, mean_apart, var_apart. Returns whether all of it
 * is finite. */
static PyObject *combined(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    window w;
    arguments a = {args};
    (void)self;
    if (!count_is(count, 10)) return NULL;
    w.out = address(&a);
    w.mean = address(&a);
    w.var = address(&a);
    w.lag_mean = address(&a);
    w.lag_var = address(&a);
    w.weights = address(&a);
    w.C = integer(&a);
    w.L = integer(&a);
    w.mean_apart = integer(&a);
    w.var_apart = integer(&a);
    const window_code *code = ready(args[0], !w.weights || (w.lag_mean && w.lag_var));
    if (!code) return NULL;
    return PyBool_FromLong(code->combined(&w));
}

/* mean, var, own_mean, offset, rest, inverse_var, valid; C, L, slot, no_rest. */
static PyObject *keep(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    place p;
    arguments a = {args};
    (void)self;
    if (!count_is(count, 11)) return NULL;
    p.mean = address(&a);
    p.var = address(&a);
    p.own_mean = address(&a);
    p.offset = address(&a);
    p.rest = address(&a);
    p.inverse_var = address(&a);
    p.valid = address(&a);
    p.C = integer(&a);
    p.L = integer(&a);
    p.slot = integer(&a);
    p.no_rest = integer(&a) != 0;
    const window_code *code = ready(args[0], p.slot >= 0 && p.slot < p.L);
    if (!code) return NULL;
    code->keep(&p);
    Py_RETURN_NONE;
}

/* x, y, mean, patches, outputs, rest; example, output, read; C, G, K, L, s, n, slot; channels, S, k,
 * out. */
static PyObject *sample(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    positions p;
    arguments a = {args};
    (void)self;
    if (!count_is(count, 20)) return NULL;
    p.x = address(&a);
    p.y = address(&a);
    p.mean = address(&a);
    p.patches = address(&a);
    p.outputs = address(&a);
    p.rest = address(&a);
    p.example = address(&a);
    p.output = address(&a);
    p.read = address(&a);
    p.C = integer(&a);
    p.G = integer(&a);
    p.K = integer(&a);
    p.L = integer(&a);
    p.s = integer(&a);
    p.n = integer(&a);
    p.slot = integer(&a);
    p.channels = integer(&a);
    p.S = integer(&a);
    p.k = integer(&a);
    p.out = integer(&a);
    p.R = p.L + 1 + p.L * p.s;
    const window_code *code =
        ready(args[0], p.slot >= 0 && p.slot < p.L && p.n > 0 && p.n <= p.s && p.G > 0 &&
                           p.channels % p.G == 0 && p.channels / p.G * p.k == p.K);
    if (!code) return NULL;
    code->sample(&p);
    Py_RETURN_NONE;
}

/* x, patches, example, read; G, K, n, channels, S, k. */
static PyObject *gather(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    positions p = {.slot = 0};
    arguments a = {args};
    (void)self;
    if (!count_is(count, 10)) return NULL;
    p.x = address(&a);
    p.patches = address(&a);
    p.example = address(&a);
    p.read = address(&a);
    p.G = integer(&a);
    p.K = integer(&a);
    p.n = integer(&a);
    p.channels = integer(&a);
    p.S = integer(&a);
    p.k = integer(&a);
    const window_code *code =
        ready(args[0], p.G > 0 && p.channels % p.G == 0 && p.channels / p.G * p.k == p.K);
    if (!code) return NULL;
    Py_BEGIN_ALLOW_THREADS
    code->gather(&p);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* running_mean, running_var, mean, var, counter; C, rate, unbiased. */
static PyObject *track(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    averages v;
    arguments a = {args};
    (void)self;
    if (!count_is(count, 8)) return NULL;
    v.running_mean = address(&a);
    v.running_var = address(&a);
    v.mean = address(&a);
    v.var = address(&a);
    v.counter = address(&a);
    v.C = integer(&a);
    v.rate = number(&a);
    v.unbiased = number(&a);
    const window_code *code = ready(args[0], true);
    if (!code) return NULL;
    code->track(&v);
    Py_RETURN_NONE;
}

PyMethodDef window_methods[] = {
    {"mean_patch", (PyCFunction)(void (*)(void))mean_patch, METH_FASTCALL, NULL},
    {"derived", (PyCFunction)(void (*)(void))derived, METH_FASTCALL, NULL},
    {"sampled", (PyCFunction)(void (*)(void))sampled, METH_FASTCALL, NULL},
    {"combined", (PyCFunction)(void (*)(void))combined, METH_FASTCALL, NULL},
    {"keep", (PyCFunction)(void (*)(void))keep, METH_FASTCALL, NULL},
    {"sample", (PyCFunction)(void (*)(void))sample, METH_FASTCALL, NULL},
    {"gather", (PyCFunction)(void (*)(void))gather, METH_FASTCALL, NULL},
    {"track", (PyCFunction)(void (*)(void))track, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
