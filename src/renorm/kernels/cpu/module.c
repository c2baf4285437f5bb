/* The Python module: raw addresses and sizes in, one step computed.
 *
 * It knows nothing of torch but two functions of its library that the caller looks up: sharing
 * torch's own pool matters, since a second pool beside it makes stalls of milliseconds when both spin.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#include "kernel.h"

/* Measured on 2 cores, a layer's forward of (n / 64, 64) floats with 1 and with 2 threads: the same at
 * 32,768 values (48.7 and 48.5 microseconds), and 3 % less at 65,536 (55.6 and 53.8). */
enum { VALUES_PER_THREAD = 16384 };

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

static int threads_for(int64_t values) {
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

/* Arguments are read one after the other; whether all were numbers is asked once, at the end. */
typedef struct {
    PyObject *const *next;
} arguments;

static int64_t integer(arguments *a) { return PyLong_AsLongLong(*a->next++); }
static void *address(arguments *a) { return PyLong_AsVoidPtr(*a->next++); }
static double number(arguments *a) { return PyFloat_AsDouble(*a->next++); }

static vector channels(arguments *a) {
    const void *values = address(a);
    return (vector){values, (enum dtype)integer(a)};
}

static enum dtype tensor(arguments *a, call *c) {
    enum dtype dtype = (enum dtype)integer(a);
    c->rows = integer(a) != 0;
    c->N = integer(a);
    c->C = integer(a);
    c->S = integer(a);
    c->microbatch = integer(a);
    c->relu = integer(a) != 0;
    c->x = address(a);
    c->mask = address(a);
    return dtype;
}

/* The five (G, C) statistics that one allocation holds, in the accumulation dtype. */
static void statistics(arguments *a, call *c, enum dtype dtype) {
    char *memory = address(a);
    if (c->microbatch < 1) return; /* computed() says so */
    const int64_t groups = (c->N + c->microbatch - 1) / c->microbatch;
    const int64_t bytes = groups * c->C * (dtype == FLOAT64 ? 8 : 4);
    c->mean = memory;
    c->lost = memory + bytes;
    c->var = memory + 2 * bytes;
    c->r = memory + 3 * bytes;
    c->d = memory + 4 * bytes;
}

static bool count_is(Py_ssize_t given, Py_ssize_t expected) {
    if (given == expected) return true;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, given);
    return false;
}

static bool computed(call *c, enum dtype dtype) {
    const int64_t values = c->N * c->C * c->S;
    if (PyErr_Occurred()) return false;
    if (c->microbatch < 1 || dtype < 0 || dtype >= DTYPES) {
        PyErr_SetString(PyExc_ValueError, "no such dtype, or a microbatch below 1");
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

static PyObject *forward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    call c = {.dy = NULL};
    arguments a = {args};
    (void)self;
    if (!count_is(count, 27)) return NULL;
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
    if (!computed(&c, dtype)) return NULL;
    return PyBool_FromLong(c.counted);
}

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
    if (!computed(&c, dtype)) return NULL;
    Py_RETURN_NONE;
}

static PyObject *connect(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    arguments a = {args};
    (void)self;
    if (!count_is(count, 2)) return NULL;
    void *f = address(&a), *g = address(&a);
    if (PyErr_Occurred()) return NULL;
    memcpy(&parallel_for, &f, sizeof f);
    memcpy(&get_num_threads, &g, sizeof g);
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
    {"connect", (PyCFunction)(void (*)(void))connect, METH_FASTCALL, NULL},
    {"use", use, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "renorm.kernels.cpu._native", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) {
    const char *const names[] = {"avx512", "avx2"};
    for (int i = 0; i < 2; i++) {
        const instructions *found = supported(names[i]);
        if (found) {
            chosen = found;
            break;
        }
    }
    return PyModule_Create(&definition);
}
