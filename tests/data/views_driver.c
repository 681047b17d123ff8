/* Runs the native kernel's loops on random input: those for this processor must give what the plain ones give. Memory is
   of exactly the size that each function may touch, so a sanitizer sees every step beyond it.
   views_driver SEED ROUNDS */
#include "_views.h"
#include "_views_plain.h"

#define LOOP(name) plain_##name
#define TARGET
#define SPLIT_TERMS 0
#include "_views_chain.h"
#undef LOOP
#undef TARGET
#undef SPLIT_TERMS

#if defined(__x86_64__)
#include "_views_avx2.h"
#define LOOP(name) avx2_##name
#define TARGET AVX2
#define SPLIT_TERMS 1
#include "_views_chain.h"
#define FAST(name) avx2_##name
#else
#define FAST(name) plain_##name
#endif

#include <stdio.h>

static uint64_t state;

static uint32_t chance(uint32_t below) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)((state >> 20) % below);
}

static int between(int low, int high) { return low + (int)chance((uint32_t)(high - low + 1)); }
static double uniform(double low, double high) { return low + (high - low) * chance(1 << 20) / (1 << 20); }

static uint8_t *noise(size_t length) {
    uint8_t *made = malloc(length ? length : 1);
    int kind = between(0, 5), level = between(0, 255); /* sometimes flat, or only the ends of the range */
    for (size_t i = 0; i < length; i++)
        made[i] = (uint8_t)(kind == 0 ? level : kind == 1 ? 255 * between(0, 1) : between(0, 255));
    return made;
}

static uint8_t *copy_of(const uint8_t *from, size_t length) { return memcpy(malloc(length ? length : 1), from, length); }

static void same(const char *what, const uint8_t *one, const uint8_t *two, size_t length) {
    if (memcmp(one, two, length) == 0) return;
    printf("%s differs\n", what);
    exit(1);
}

static float factor(void) {
    static const float special[] = {0.0f, 1.0f, -1.0f, 1e30f, -1e30f, 1e-30f, 255.0f, 0.5f};
    return chance(3) ? (float)uniform(-0.5, 3.0) : special[chance(8)];
}

static void try_colours(void) {
    size_t pixels = chance(200), all = 3 * pixels;
    uint8_t *planes = noise(all), *one, *two;
    float by = factor();
    int level = between(0, 255), shift = between(0, 255);
#define BOTH(name, ...)                                          \
    do {                                                         \
        uint8_t *made = one = copy_of(planes, all);              \
        plain_##name(__VA_ARGS__);                               \
        made = two = copy_of(planes, all);                       \
        FAST(name)(__VA_ARGS__);                                 \
        (void)made;                                              \
        same(#name, one, two, all);                              \
        free(one), free(two);                                    \
    } while (0)
    BOTH(blend, made, all, level, by);
    BOTH(saturate, made, made + pixels, made + 2 * pixels, pixels, by);
    BOTH(hue, made, made + pixels, made + 2 * pixels, pixels, shift);
    BOTH(to_grey, made, made + pixels, made + 2 * pixels, pixels);
    uint64_t sum = plain_sum_grey(planes, planes + pixels, planes + 2 * pixels, pixels);
    if (sum != FAST(sum_grey)(planes, planes + pixels, planes + 2 * pixels, pixels)) puts("sum_grey differs"), exit(1);
    free(planes);
}

static void try_turn(void) {
    int rows = between(1, 100);
    size_t length = (size_t)between(1, 100), in_stride = length + chance(3), out_stride = (size_t)rows + chance(3);
    size_t in_bytes = ((size_t)rows - 1) * in_stride + length, out_bytes = (length - 1) * out_stride + (size_t)rows;
    uint8_t *in = noise(in_bytes), *one = calloc(out_bytes, 1), *two = calloc(out_bytes, 1);
    plain_turn(in, in_stride, rows, length, one, out_stride);
    FAST(turn)(in, in_stride, rows, length, two, out_stride);
    same("turn", one, two, out_bytes);
    free(in), free(one), free(two);
}

static void try_box(void) {
    int radius = between(0, 4), last = 2 * radius + 2; /* weights are those of a blur only up to radius 2 */
    size_t pixels = (size_t)between(1, 150);
    float box = (float)(radius + uniform(0, 1));
    uint32_t weight = (uint32_t)((float)(1 << BLUR_BITS) / (box * 2 + 1));
    uint32_t end_weight = ((1u << BLUR_BITS) - (uint32_t)(2 * radius + 1) * weight) / 2;
    uint8_t *in[11], *one = calloc(pixels, 1), *two = calloc(pixels, 1);
    for (int j = 0; j <= last; j++) in[j] = noise(pixels);
    plain_box((const uint8_t *const *)in, radius, one, pixels, weight, end_weight);
    FAST(box)((const uint8_t *const *)in, radius, two, pixels, weight, end_weight);
    same("box", one, two, pixels);
    for (int j = 0; j <= last; j++) free(in[j]);
    free(one), free(two);
}

static void try_sum_rows(void) {
    Scratch scratch = {{0}, {0}};
    Axis plain, fast;
    int length = between(1, chance(10) ? 60 : 3000), whole = between(1, 60), from = between(0, whole - 1);
    int outputs = between(1, whole - from), bicubic = between(0, 1), reverse = between(0, 1);
    size_t pixels = (size_t)between(1, 150), wide = pixels < WIDE ? WIDE : pixels;
    size_t stride = pixels + chance(3), bytes = ((size_t)length - 1) * stride + wide;
    uint8_t *in = noise(bytes), *one = calloc(wide, 1), *two = calloc(wide, 1);
    fill_axis(&plain, &scratch, AXIS_ONE, length, whole, from, outputs, bicubic, reverse, 0);
    fill_axis(&fast, &scratch, AXIS_TWO, length, whole, from, outputs, bicubic, reverse, 1);
    for (int i = 0; i < outputs; i++) {
        int begin = plain.first[i], count = plain.count[i];
        if (begin < 0 || count < 1 || begin + count > length || count > plain.stride) puts("fill_axis is wrong"), exit(1);
        plain_sum_rows(in + (size_t)begin * stride, stride, plain.terms + (size_t)i * plain.stride, count, one, pixels);
#if defined(__x86_64__)
        avx2_sum_rows(in + (size_t)fast.first[i] * stride, stride, fast.terms + (size_t)i * fast.stride, fast.count[i], two,
                      pixels);
        same("sum_rows", one, two, wide);
#endif
    }
    free(in), free(one), free(two);
    scratch_free(&scratch);
}

static void draw_view(View *view, const Picture *picture) {
    memset(view, 0, sizeof *view);
    int thin = chance(4) == 0;
    view->height = thin ? between(1, at_most(3, picture->height)) : between(1, picture->height);
    view->width = chance(4) == 0 ? between(1, at_most(3, picture->width)) : between(1, picture->width);
    view->top = between(0, picture->height - view->height), view->left = between(0, picture->width - view->width);
    view->size = between(1, chance(4) ? 40 : 130);
    view->tall = view->wide = view->size;
    if (chance(4) == 0) {
        view->tall += between(0, 60), view->wide += between(0, 60);
        view->down = between(0, view->tall - view->size), view->right = between(0, view->wide - view->size);
    }
    view->bicubic = between(0, 1), view->flip = between(0, 1), view->vertical_flip = between(0, 1);
    view->grayscale = chance(4) == 0, view->solarize = chance(4) == 0;
    view->steps = between(0, 5);
    for (int i = 0; i < view->steps; i++) view->jitter[i] = (Step){between(0, 3), factor()};
    if (chance(2)) view->box = box_radius((float)(chance(5) ? uniform(0.001, 6.0) : uniform(0.001, 300.0)));
    if (chance(50) == 0) view->box = (float)(1 << 20);
}

static void try_views(Scratch *scratch) {
    static const int sides[] = {1, 2, 31, 32, 33, 64, 200, 400, 1500};
    Picture picture = {NULL, chance(2) ? sides[chance(9)] : between(1, 300), 0, chance(3) ? 3 : 1};
    picture.width = picture.height > 1000 ? between(1, 60) : chance(2) ? sides[chance(9)] : between(1, 300);
    picture.pixels = noise((size_t)picture.height * picture.width * picture.channels);
    View plain[5], fast[5];
    int count = between(0, 5), by_cost = between(0, 1);
    for (int i = 0; i < count; i++) {
        draw_view(&plain[i], &picture);
        fast[i] = plain[i];
        size_t bytes = (size_t)plain[i].size * plain[i].size * picture.channels;
        plain[i].out = calloc(bytes, 1), fast[i].out = calloc(bytes, 1);
    }
    if (!plain_render(&picture, plain, count, by_cost, scratch)) puts("no memory"), exit(1);
    if (!FAST(render)(&picture, fast, count, by_cost, scratch)) puts("no memory"), exit(1);
    for (int i = 0; i < count; i++) {
        same("a view", plain[i].out, fast[i].out, (size_t)plain[i].size * plain[i].size * picture.channels);
        free(plain[i].out), free(fast[i].out);
    }
    free((void *)picture.pixels);
}

int main(int count, char **words) {
    long rounds = count > 2 ? atol(words[2]) : 100;
    state = 0x9e3779b97f4a7c15u * (uint64_t)(count > 1 ? atol(words[1]) + 1 : 1);
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx2")) return puts("this processor has no AVX2"), 77;
#endif
    Scratch kept = {{0}, {0}};
    for (long i = 0; i < rounds; i++) {
        try_colours(), try_turn(), try_box(), try_sum_rows();
        try_views(&kept);
        if (i % 4 == 0) scratch_free(&kept); /* so that a sanitizer sees memory of this round only */
    }
    scratch_free(&kept);
    printf("%ld rounds agree\n", rounds);
    return 0;
}
