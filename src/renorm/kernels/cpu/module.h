/* How the functions of the module read what Python gives them. */
#ifndef RENORM_MODULE_H
#define RENORM_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernel.h"

/* Arguments are read one after the other; whether all could be is asked once, at the end. */
typedef struct {
    PyObject *const *next;
} arguments;

static inline int64_t integer(arguments *a) { return PyLong_AsLongLong(*a->next++); }
static inline double number(arguments *a) { return PyFloat_AsDouble(*a->next++); }

/* The address of a tensor's values, NULL for None alone: freed storage has none either. */
void *address(arguments *a);

/* The number of a tensor's dtype, or DTYPES if there is no code for it. */
enum dtype dtype_of(PyObject *t);

bool count_is(Py_ssize_t given, Py_ssize_t expected);

/* How many threads so many values are worth. */
int threads_for(int64_t values);

/* The code that this processor runs. */
const instructions *in_use(void);

/* The functions of a window, with an empty entry behind the last. */
extern PyMethodDef window_methods[];

#endif
