/* The module vissl_like.data.transforms._views: checks what Python hands over, then makes the views without the GIL. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if SIZE_MAX < UINT64_MAX
#error "sizes of tables are computed in 64 bits"
#endif

#include "_views.h"
#include "_views_plain.h"

#define LOOP(name) plain_##name
#define TARGET
#define SPLIT_TERMS 0
#include "_views_chain.h"
#undef LOOP
#undef TARGET
#undef SPLIT_TERMS

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2
#include "_views_avx2.h"
#define LOOP(name) avx2_##name
#define TARGET AVX2
#define SPLIT_TERMS 1
#include "_views_chain.h"
#endif

enum {
    MOST_SIDE = 1 << 24,       /* of an image */
    MOST_SIZE = 1 << 14,       /* of a view */
    MOST_BOX = 1 << 20,        /* radius of a blur */
    MOST_IDLE = 8,             /* scratches kept, one for each thread that renders at the same time */
    MOST_KEPT = 32 << 20       /* bytes of a scratch that is kept */
};

static int fast_loops; /* whether this processor can run the AVX2 loops */

/* Scratches at rest; taken and put back with the GIL held. */
static Scratch idle[MOST_IDLE];
static int idle_count;

static Scratch take_scratch(void) { return idle_count ? idle[--idle_count] : (Scratch){{0}, {0}}; }

static void put_scratch(Scratch scratch) {
    if (idle_count < MOST_IDLE && scratch_bytes(&scratch) <= MOST_KEPT)
        idle[idle_count++] = scratch;
    else
        scratch_free(&scratch);
}

/* Names of a view's attributes, in the order of FIELDS; then of the kinds of a jitter's steps. */
enum { TOP, LEFT, HEIGHT, WIDTH, SIZE, INTERPOLATION, FLIP, VERTICAL_FLIP, JITTER, GRAYSCALE, BLUR, SOLARIZE, FIELDS };
static const char *const field_texts[FIELDS] = {"top",  "left",          "height", "width",     "size", "interpolation",
                                                "flip", "vertical_flip", "jitter", "grayscale", "blur", "solarize"};
static PyObject *field_names[FIELDS];
static const char *const step_texts[] = {"brightness", "contrast", "saturation", "hue"};

static int whole_number(PyObject *owner, int field, int least, int most, int *found) {
    PyObject *value = PyObject_GetAttr(owner, field_names[field]);
    if (!value) return 0;
    int overflow = 0;
    long long number = PyLong_Check(value) ? PyLong_AsLongLongAndOverflow(value, &overflow) : 0;
    int right = PyLong_Check(value) && !overflow && number >= least && number <= most;
    if (!right && !PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "%s of a view is %R; it must be a whole number in %d..%d", field_texts[field], value,
                     least, most);
    Py_DECREF(value);
    *found = (int)number;
    return right;
}

static int truth(PyObject *owner, int field, int *found) {
    PyObject *value = PyObject_GetAttr(owner, field_names[field]);
    if (!value) return 0;
    *found = PyObject_IsTrue(value);
    Py_DECREF(value);
    return *found >= 0;
}

static int interpolation(PyObject *owner, int *bicubic) {
    PyObject *value = PyObject_GetAttr(owner, field_names[INTERPOLATION]);
    if (!value) return 0;
    int known = PyUnicode_Check(value);
    *bicubic = known && PyUnicode_CompareWithASCIIString(value, "bicubic") == 0;
    known = *bicubic || (known && PyUnicode_CompareWithASCIIString(value, "bilinear") == 0);
    if (!known) PyErr_Format(PyExc_ValueError, "interpolation of a view is %R; it can be bilinear or bicubic", value);
    Py_DECREF(value);
    return known;
}

/* A number that is finite as float, too. */
static int finite_number(PyObject *value, const char *what, double *found) {
    *found = PyFloat_AsDouble(value);
    if (*found == -1.0 && PyErr_Occurred()) return 0;
    if (!isfinite((float)*found)) {
        PyErr_Format(PyExc_ValueError, "%s of a view is %R; it must be finite", what, value);
        return 0;
    }
    return 1;
}

static int read_step(PyObject *given, Step *step) {
    if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) != 2 || !PyUnicode_Check(PyTuple_GET_ITEM(given, 0))) {
        PyErr_Format(PyExc_ValueError, "a step of a jitter is %R; it must be (name, factor)", given);
        return 0;
    }
    for (step->kind = BRIGHTNESS; step->kind <= HUE; step->kind++)
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(given, 0), step_texts[step->kind]) == 0) break;
    if (step->kind > HUE) {
        PyErr_Format(PyExc_ValueError, "a step of a jitter is %R; it can be brightness, contrast, saturation or hue",
                     PyTuple_GET_ITEM(given, 0));
        return 0;
    }
    return finite_number(PyTuple_GET_ITEM(given, 1), step_texts[step->kind], &step->amount);
}

static int read_jitter(PyObject *owner, View *view) {
    PyObject *value = PyObject_GetAttr(owner, field_names[JITTER]);
    if (!value) return 0;
    int right = PyTuple_Check(value) && PyTuple_GET_SIZE(value) <= MOST_STEPS;
    if (!right) PyErr_Format(PyExc_ValueError, "jitter of a view must be a tuple of at most %d steps", MOST_STEPS);
    view->steps = right ? (int)PyTuple_GET_SIZE(value) : 0;
    for (int i = 0; right && i < view->steps; i++) right = read_step(PyTuple_GET_ITEM(value, i), &view->jitter[i]);
    Py_DECREF(value);
    return right;
}

static int read_blur(PyObject *owner, View *view) {
    PyObject *value = PyObject_GetAttr(owner, field_names[BLUR]);
    if (!value) return 0;
    double sigma = 0.0;
    int right = value == Py_None || finite_number(value, "blur", &sigma);
    view->box = right && sigma > 0 ? box_radius((float)sigma) : 0.0f;
    if (right && !(sigma >= 0 && view->box <= MOST_BOX)) {
        PyErr_Format(PyExc_ValueError, "blur of a view is %R; it must be at least 0 and at most about %d", value, MOST_BOX);
        right = 0;
    }
    Py_DECREF(value);
    return right;
}

static int read_view(PyObject *given, const Picture *picture, View *view) {
    int right = whole_number(given, HEIGHT, 1, picture->height, &view->height) &&
                whole_number(given, WIDTH, 1, picture->width, &view->width) &&
                whole_number(given, TOP, 0, picture->height - view->height, &view->top) &&
                whole_number(given, LEFT, 0, picture->width - view->width, &view->left) &&
                whole_number(given, SIZE, 1, MOST_SIZE, &view->size) && interpolation(given, &view->bicubic) &&
                truth(given, FLIP, &view->flip) && truth(given, VERTICAL_FLIP, &view->vertical_flip) &&
                truth(given, GRAYSCALE, &view->grayscale) && truth(given, SOLARIZE, &view->solarize) &&
                read_jitter(given, view) && read_blur(given, view);
    view->tall = view->wide = view->size;
    view->down = view->right = 0;
    return right;
}

static int bytes_of(PyObject *given, const char *what, int flags, Py_buffer *buffer) {
    if (PyObject_GetBuffer(given, buffer, flags | PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_MemoryError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_ValueError, "%s must be a C-contiguous%s array of uint8", what,
                         flags & PyBUF_WRITABLE ? ", writable" : "");
        }
        return 0;
    }
    if (buffer->itemsize == 1 && buffer->format && strcmp(buffer->format, "B") == 0) return 1;
    PyErr_Format(PyExc_ValueError, "%s must be an array of uint8", what);
    PyBuffer_Release(buffer);
    return 0;
}

static int read_picture(PyObject *given, Py_buffer *buffer, Picture *picture) {
    if (!bytes_of(given, "the image", 0, buffer)) return 0;
    int dimensions = buffer->ndim, right = dimensions == 2 || (dimensions == 3 && buffer->shape[2] == 3);
    for (int i = 0; right && i < 2; i++) right = buffer->shape[i] >= 1 && buffer->shape[i] <= MOST_SIDE;
    if (!right) {
        PyErr_Format(PyExc_ValueError, "the image must be [H, W] or [H, W, 3] with sides of 1 to %d pixels", MOST_SIDE);
        PyBuffer_Release(buffer);
        return 0;
    }
    *picture = (Picture){buffer->buf, (int)buffer->shape[0], (int)buffer->shape[1], dimensions == 2 ? 1 : 3};
    return 1;
}

/* A view's memory: any shape will do that holds exactly its bytes, if it does not overlap with the image's. */
static int read_row(PyObject *given, const Py_buffer *image, const Picture *picture, View *view, Py_buffer *buffer) {
    if (!bytes_of(given, "the memory of a view", PyBUF_WRITABLE, buffer)) return 0;
    Py_ssize_t wanted = (Py_ssize_t)picture->channels * view->size * view->size;
    uintptr_t from = (uintptr_t)buffer->buf, image_from = (uintptr_t)image->buf;
    int apart = from + (size_t)buffer->len <= image_from || image_from + (size_t)image->len <= from;
    view->out = buffer->buf;
    if (buffer->len == wanted && apart) return 1;
    if (!apart)
        PyErr_SetString(PyExc_ValueError, "the memory of a view overlaps with that of the image");
    else
        PyErr_Format(PyExc_ValueError, "the memory of a view has %zd bytes; it must be [%d, %d, %d]", buffer->len,
                     picture->channels, view->size, view->size);
    PyBuffer_Release(buffer);
    return 0;
}

/* Renders without the GIL; 0 with an exception set. */
static int render(const Picture *picture, const View *views, int count, int by_cost, int plain) {
    Scratch scratch = take_scratch();
    int done;
    Py_BEGIN_ALLOW_THREADS;
#ifdef HAVE_AVX2
    if (fast_loops && !plain)
        done = avx2_render(picture, views, count, by_cost, &scratch);
    else
#endif
        done = plain_render(picture, views, count, by_cost, &scratch);
    Py_END_ALLOW_THREADS;
    put_scratch(scratch);
    (void)plain;
    if (!done) PyErr_NoMemory();
    return done;
}

static PyObject *render_into(PyObject *Py_UNUSED(module), PyObject *given) {
    PyObject *pixels, *view_list, *row_list, *result = NULL;
    int by_cost, plain, held = 0;
    if (!PyArg_ParseTuple(given, "OO!O!pp", &pixels, &PyList_Type, &view_list, &PyList_Type, &row_list, &by_cost, &plain))
        return NULL;
    /* Attributes may run Python code, which could change a list: tuples cannot be changed. */
    PyObject *wanted = PyList_AsTuple(view_list), *memory = wanted ? PyList_AsTuple(row_list) : NULL;
    Py_buffer image;
    Picture picture;
    if (!memory || !read_picture(pixels, &image, &picture)) {
        Py_XDECREF(wanted);
        Py_XDECREF(memory);
        return NULL;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(wanted);
    View *views = PyMem_Calloc((size_t)count + 1, sizeof *views);
    Py_buffer *buffers = PyMem_Calloc((size_t)count + 1, sizeof *buffers);
    if (!views || !buffers) {
        PyErr_NoMemory();
    } else if (PyTuple_GET_SIZE(memory) != count || count > MOST_SIDE) {
        PyErr_Format(PyExc_ValueError, "%zd views, but memory for %zd", count, PyTuple_GET_SIZE(memory));
    } else {
        while (held < count && read_view(PyTuple_GET_ITEM(wanted, held), &picture, &views[held]) &&
               read_row(PyTuple_GET_ITEM(memory, held), &image, &picture, &views[held], &buffers[held]))
            held++;
        if (held == count && render(&picture, views, (int)count, by_cost, plain)) result = Py_NewRef(Py_None);
    }
    for (int i = 0; i < held; i++) PyBuffer_Release(&buffers[i]);
    PyMem_Free(views);
    PyMem_Free(buffers);
    PyBuffer_Release(&image);
    Py_DECREF(wanted);
    Py_DECREF(memory);
    return result;
}

static PyObject *window_into(PyObject *Py_UNUSED(module), PyObject *given) {
    PyObject *pixels, *row, *result = NULL;
    View view = {0};
    int by_cost, plain;
    if (!PyArg_ParseTuple(given, "O(iiii)(ii)(ii)ipOpp", &pixels, &view.top, &view.left, &view.height, &view.width,
                          &view.tall, &view.wide, &view.down, &view.right, &view.size, &view.bicubic, &row, &by_cost, &plain))
        return NULL;
    Py_buffer image, buffer;
    Picture picture;
    if (!read_picture(pixels, &image, &picture)) return NULL;
    int inside = view.height >= 1 && view.width >= 1 && view.top >= 0 && view.left >= 0 && view.size >= 1 &&
                 view.height <= picture.height - view.top && view.width <= picture.width - view.left &&
                 view.tall <= MOST_SIDE && view.wide <= MOST_SIDE && view.down >= 0 && view.right >= 0 &&
                 view.size <= MOST_SIZE && view.down <= view.tall - view.size && view.right <= view.wide - view.size;
    if (!inside) {
        PyErr_SetString(PyExc_ValueError, "the box must lie inside the image, and the window inside the resized box");
    } else if (read_row(row, &image, &picture, &view, &buffer)) {
        if (render(&picture, &view, 1, by_cost, plain)) result = Py_NewRef(Py_None);
        PyBuffer_Release(&buffer);
    }
    PyBuffer_Release(&image);
    return result;
}

static PyMethodDef functions[] = {
    {"render_into", render_into, METH_VARARGS,
     "render_into(pixels, views, rows, by_cost, plain)\n--\n\nMakes all views of an image."},
    {"window_into", window_into, METH_VARARGS,
     "window_into(pixels, box, whole, place, size, bicubic, row, by_cost, plain)\n--\n\n"
     "The window (place, size) of what the box becomes when resized to whole; all (vertical, horizontal)."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_views", "Views of images, by loops that equal Pillow's to the bit.", -1, functions,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__views(void) {
    for (int i = 0; i < FIELDS; i++)
        if (!field_names[i] && !(field_names[i] = PyUnicode_InternFromString(field_texts[i]))) return NULL;
#ifdef HAVE_AVX2
    __builtin_cpu_init();
    fast_loops = __builtin_cpu_supports("avx2") != 0;
#endif
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddStringConstant(module, "loops", fast_loops ? "AVX2" : "plain C") < 0) Py_CLEAR(module);
    return module;
}
