/* The Python module: raw addresses and sizes in, one step computed.
 *
 * It knows nothing of torch but two functions of its library that the caller looks up: sharing
 * torch's own pool matters, since a second pool beside it makes stalls of milliseconds when both spin.
 */
#include "module.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Measured on 2 cores with 65,536 values as rows: a layer's step took 166 microseconds with 2 threads and
 * 187 with 1. With 32,768 the second one costs more than it saves, 19 against 10 of a forward; and
 * where its core is busy, waiting for it takes milliseconds. */
enum { VALUES_PER_THREAD = 32768 };

/* Other Python threads wait no longer than a small step takes; a larger one lets them run. */
enum { VALUES_WITH_LOCK = 8192 };

typedef void (*range_function)(int64_t, int64_t, void *);
typedef int32_t (*parallel_for_function)(int64_t, int64_t, int64_t, range_function, void *);
typedef int32_t (*get_num_threads_function)(uint32_t *);

static parallel_for_function parallel_for;
static get_num_threads_function get_num_threads;
static const instructions *chosen = &baseline;

void in_parallel(int threads, int64_t n, range_function f, void *context) {
    if (threads <= 1 || n <= 1)
        f(0, n, context);
    else
        parallel_for(0, n, (n + threads - 1) / threads, f, context);
}

const instructions *in_use(void) { return chosen; }

int threads_for(int64_t values) {
    uint32_t threads = 1;
    if (values < 2 * VALUES_PER_THREAD || get_num_threads(&threads) != 0) return 1;
    int64_t useful = values / VALUES_PER_THREAD;
    return (int)(threads < useful ? threads : useful);
}

static const instructions *supported(const char *name) {
    if (strcmp(name, "baseline") == 0) return &baseline;
#ifdef RENORM_X86
    __builtin_cpu_init();
    bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (strcmp(name, "avx2") == 0 && has_avx2) return &avx2;
    if (strcmp(name, "avx512") == 0 && has_avx2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return &avx512;
#endif
    return NULL;
}

/* What is known of torch: its tensor classes, its floating-point dtypes in our order, and the names of
 * the methods that are called. */
static PyObject *classes[2], *dtypes[DTYPES];
static PyObject *name_dtype, *name_data_ptr, *name_is_cpu, *name_is_neg, *name_is_contiguous;
static PyObject *name_dim, *name_numel, *name_size, *one;

/* What a method returns; after an error nothing is called any more. */
static int64_t called(PyObject *t, PyObject *method, PyObject *argument) {
    PyObject *result = PyErr_Occurred() ? NULL : PyObject_CallMethodObjArgs(t, method, argument, NULL);
    if (!result) return -1;
    int64_t value = PyLong_AsLongLong(result);
    Py_DECREF(result);
    return value;
}

static void *data(PyObject *t) {
    if (t == Py_None) return NULL;
    void *values = (void *)(uintptr_t)called(t, name_data_ptr, NULL);
    if (PyErr_Occurred()) return NULL;
    if (!values)
        PyErr_SetString(PyExc_RuntimeError, "a tensor has values, but its memory was freed");
    return values;
}

void *address(arguments *a) { return data(*a->next++); }

enum dtype dtype_of(PyObject *t) {
    PyObject *found = PyErr_Occurred() ? NULL : PyObject_GetAttr(t, name_dtype);
    int i = 0;
    if (!found) return DTYPES;
    while (i < DTYPES && found != dtypes[i]) i++;
    Py_DECREF(found); /* torch keeps them all */
    return (enum dtype)i;
}

static vector channels(arguments *a) {
    PyObject *t = *a->next++;
    if (t == Py_None) return (vector){NULL, FLOAT32};
    return (vector){data(t), dtype_of(t)};
}

static enum dtype tensor(arguments *a, call *c) {
    PyObject *x = *a->next++;
    enum dtype dtype = dtype_of(x);
    c->x = data(x);
    c->rows = integer(a) != 0;
    c->N = integer(a);
    c->C = integer(a);
    c->S = integer(a);
    c->microbatch = integer(a);
    if (c->microbatch > c->N) c->microbatch = c->N;
    c->relu = integer(a) != 0;
    c->mask = address(a);
    return dtype;
}

/* The five (G, C) statistics that one allocation holds, in the accumulation dtype. */
static void statistics(arguments *a, call *c, enum dtype dtype) {
    char *memory = address(a);
    if (c->microbatch < 1) return; /* computed() says so */
    const int64_t bytes = groups_of(c) * c->C * (dtype == FLOAT64 ? 8 : 4);
    c->mean = memory;
    c->lost = memory + bytes;
    c->var = memory + 2 * bytes;
    c->r = memory + 3 * bytes;
    c->d = memory + 4 * bytes;
}

bool count_is(Py_ssize_t given, Py_ssize_t expected) {
    if (given == expected) return true;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, given);
    return false;
}

static bool known(const vector *v) { return !v->values || v->dtype < DTYPES; }

static bool computed(call *c, enum dtype dtype) {
    const int64_t values = c->N * c->C * c->S;
    if (PyErr_Occurred()) return false;
    if (c->microbatch < 1 || dtype == DTYPES || !known(&c->weight) || !known(&c->bias) ||
        !known(&c->running_mean) || !known(&c->running_var) || !known(&c->given_mean) ||
        !known(&c->given_var) || !known(&c->given_r) || !known(&c->given_d) ||
        !known(&c->removed_mean) || !known(&c->removed_slope)) {
        PyErr_SetString(PyExc_ValueError, "no code for this dtype, or a microbatch below 1");
        return false;
    }
    const call_function run = chosen->run[dtype];
    c->threads = threads_for(values);
    if (values < VALUES_WITH_LOCK) {
        run(c);
    } else {
        Py_BEGIN_ALLOW_THREADS
        run(c);
        Py_END_ALLOW_THREADS
    }
    if (!atomic_load(&c->out_of_memory)) return true;
    PyErr_NoMemory();
    return false;
}

/* x, rows, N, C, S, microbatch, relu, mask, residual, y, saved, weight, bias, running mean and var,
 * new mean and var, counter, r_max, d_max, momentum, eps, given mean, var, r and d: tensors that lie
 * as the sizes say, or None. */
static PyObject *forward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call c = {.dy = NULL};
    arguments a = {args};
    (void)self;
    if (!count_is(count, 26)) return NULL;
    enum dtype dtype = tensor(&a, &c);
    c.residual = address(&a);
    c.out = address(&a);
    statistics(&a, &c, dtype);
    c.weight = channels(&a);
    c.bias = channels(&a);
    c.running_mean = channels(&a);
    c.running_var = channels(&a);
    c.renormalizes = c.running_mean.values != NULL;
    c.new_mean = address(&a);
    c.new_var = address(&a);
    c.counter = address(&a);
    c.r_max = number(&a);
    c.d_max = number(&a);
    c.momentum = number(&a);
    c.eps = number(&a);
    c.given_mean = channels(&a);
    c.given_var = channels(&a);
    c.given_r = channels(&a);
    c.given_d = channels(&a);
    if (!computed(&c, dtype)) return NULL;
    return PyBool_FromLong(c.counted);
}

/* x, rows, N, C, S, microbatch, relu, mask, dy, y, dx, dresidual, saved, renormalizes, weight, bias,
 * dweight, dbias, eps, share, removed mean, removed slope. */
static PyObject *backward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call c = {.dy = NULL};
    arguments a = {args};
    (void)self;
    if (!count_is(count, 22)) return NULL;
    enum dtype dtype = tensor(&a, &c);
    c.dy = address(&a);
    c.y = address(&a);
    c.out = address(&a);
    c.dresidual = address(&a);
    statistics(&a, &c, dtype);
    c.renormalizes = integer(&a) != 0;
    c.weight = channels(&a);
    c.bias = channels(&a);
    c.dweight = address(&a);
    c.dbias = address(&a);
    c.eps = number(&a);
    c.share = number(&a);
    c.removed_mean = channels(&a);
    c.removed_slope = channels(&a);
    if (!computed(&c, dtype)) return NULL;
    Py_RETURN_NONE;
}

/* Whether t is one of torch's own tensors on the cpu, of a known dtype, whose memory is its values. */
static bool is_plain(PyObject *t) {
    PyObject *on_cpu;
    if ((PyObject *)Py_TYPE(t) != classes[0] && (PyObject *)Py_TYPE(t) != classes[1]) return false;
    if (dtype_of(t) == DTYPES || !(on_cpu = PyObject_GetAttr(t, name_is_cpu))) return false;
    Py_DECREF(on_cpu);
    return on_cpu == Py_True && called(t, name_is_neg, NULL) == 0 &&
           called(t, name_data_ptr, NULL) != 0;
}

static bool is_vector(PyObject *t, int64_t C) {
    return t == Py_None || (is_plain(t) && called(t, name_dim, NULL) == 1 &&
                            called(t, name_numel, NULL) == C &&
                            called(t, name_is_contiguous, NULL) == 1);
}

static bool is_within(PyObject *value, double low, double high) {
    if (!PyFloat_Check(value) && !PyLong_Check(value)) return false;
    double number = PyFloat_AsDouble(value);
    if (PyErr_Occurred()) { /* an integer beyond all floats */
        PyErr_Clear();
        return false;
    }
    return number >= low && number <= high;
}

static bool is_plain_call(PyObject *const *args) {
    PyObject *x = args[0];
    if (!is_plain(x) || called(x, name_dim, NULL) < 2) return false;
    const int64_t C = called(x, name_size, one), values = called(x, name_numel, NULL);
    if (C < 1 || values <= C) return false;
    if ((args[1] == Py_None) != (args[2] == Py_None)) return false;
    for (int i = 1; i < 5; i++)
        if (!is_vector(args[i], C)) return false;
    return is_within(args[5], 1, INFINITY) && is_within(args[6], 0, INFINITY) &&
           is_within(args[7], 0, 1) && is_within(args[8], DBL_MIN, DBL_MAX);
}

/* x, running mean and var, weight, bias, r_max, d_max, momentum, eps: whether all are of the common
 * kind, for which nothing else needs to be looked at. */
static PyObject *plain(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!count_is(count, 9)) return NULL;
    const bool result = is_plain_call(args);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(result);
}

/* x and any number of (C,) vectors or None: whether all are plain, and x has a value at least. */
static PyObject *readable(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    bool result = count > 0 && is_plain(args[0]) && called(args[0], name_dim, NULL) >= 2 &&
                  called(args[0], name_numel, NULL) > 0;
    const int64_t C = result ? called(args[0], name_size, one) : 0;
    for (Py_ssize_t i = 1; i < count && result; i++) result = is_vector(args[i], C);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(result);
}

/* Addresses of two functions of torch's library, torch's tensor classes, and its dtypes. */
static PyObject *connect(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!count_is(count, 2 + 2 + DTYPES)) return NULL;
    void *f = PyLong_AsVoidPtr(args[0]), *g = PyLong_AsVoidPtr(args[1]);
    if (PyErr_Occurred()) return NULL;
    memcpy(&parallel_for, &f, sizeof f);
    memcpy(&get_num_threads, &g, sizeof g);
    for (int i = 0; i < 2; i++) classes[i] = Py_NewRef(args[2 + i]);
    for (int i = 0; i < DTYPES; i++) dtypes[i] = Py_NewRef(args[4 + i]);
    Py_RETURN_NONE;
}

/* Returns whether this processor has these instructions, and uses them from now on if so. */
static PyObject *use(PyObject *self, PyObject *name) {
    (void)self;
    PyObject *bytes = PyUnicode_AsUTF8String(name);
    if (!bytes) return NULL;
    const instructions *found = supported(PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    if (found) chosen = found;
    return PyBool_FromLong(found != NULL);
}

static PyMethodDef methods[] = {
    {"forward", (PyCFunction)(void (*)(void))forward, METH_FASTCALL, NULL},
    {"backward", (PyCFunction)(void (*)(void))backward, METH_FASTCALL, NULL},
    {"plain", (PyCFunction)(void (*)(void))plain, METH_FASTCALL, NULL},
    {"readable", (PyCFunction)(void (*)(void))readable, METH_FASTCALL, NULL},
    {"connect", (PyCFunction)(void (*)(void))connect, METH_FASTCALL, NULL},
    {"use", use, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "renorm.kernels.cpu._native", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

static bool named(void) {
    PyObject **const names[] = {&name_dtype,  &name_data_ptr, &name_is_cpu, &name_is_neg,
                                &name_is_contiguous, &name_dim, &name_numel, &name_size};
    const char *const texts[] = {"dtype", "data_ptr", "is_cpu", "is_neg",
                                 "is_contiguous", "dim", "numel", "size"};
    for (int i = 0; i < 8; i++)
        if (!(*names[i] = PyUnicode_InternFromString(texts[i]))) return false;
    return (one = PyLong_FromLong(1)) != NULL;
}

PyMODINIT_FUNC PyInit__native(void) {
    if (!named()) return NULL;
    const char *const names[] = {"avx512", "avx2"};
    for (int i = 0; i < 2; i++) {
        const instructions *found = supported(names[i]);
        if (found) {
            chosen = found;
            break;
        }
    }
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddFunctions(module, window_methods) < 0) Py_CLEAR(module);
    return module;
}
