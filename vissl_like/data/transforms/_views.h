/* What the parts of the multi-crop kernel share: views, tables of coefficients, scratch memory. */
#ifndef VISSL_LIKE_VIEWS_H
#define VISSL_LIKE_VIEWS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE };
enum { MOST_STEPS = 16 };  /* of a jitter; the transforms make at most four */
enum { WIDE = 32 };        /* bytes worked on at once; buffers are padded to it */

enum { MOST_ROWS = 7 };    /* up to radius 2, sigma 2.8, a box blur sums rows anew for every pixel */

/* Pillow's fixed point: coefficients of a resize have 22 bits after the point, weights of a box blur 24. */
enum { RESIZE_BITS = 22, BLUR_BITS = 24 };

typedef struct {
    int kind;
    double amount;
} Step;

typedef struct {
    int top, left, height, width; /* crop, in pixels of the image */
    int tall, wide;               /* the crop is resized to this ... */
    int down, right;              /* ... of which the view begins here ... */
    int size;                     /* ... and is a square of this side */
    int bicubic, flip, vertical_flip, grayscale, solarize;
    int steps;
    Step jitter[MOST_STEPS];
    float box;                    /* radius of the box blur, 0 for none */
    uint8_t *out;                 /* [channels][size][size] */
} View;

typedef struct {
    const uint8_t *pixels; /* [height][width][channels] */
    int height, width, channels;
} Picture;

/* Which source pixels make which output pixels along one axis: output i is made of count[i] pixels from first[i] on,
   with weights at terms + i * stride. */
typedef struct {
    int outputs, stride, lowest, end; /* all outputs together need the pixels [lowest, end) */
    int32_t *first, *count, *terms;
} Axis;

/* Memory that grows and is kept from call to call. */
enum { SOURCE, ROWS, AXIS_ONE, AXIS_TWO, WEIGHTS, STRIP, TURNED, PLANE_ONE, PLANE_TWO, SUMS, SLOTS };

typedef struct {
    void *slot[SLOTS];
    size_t bytes[SLOTS];
} Scratch;

static inline void *reserve(Scratch *scratch, int slot, size_t bytes) {
    if (scratch->bytes[slot] < bytes) {
        free(scratch->slot[slot]);
        scratch->slot[slot] = malloc(bytes);
        scratch->bytes[slot] = scratch->slot[slot] ? bytes : 0;
    }
    return scratch->slot[slot];
}

static inline size_t scratch_bytes(const Scratch *scratch) {
    size_t all = 0;
    for (int slot = 0; slot < SLOTS; slot++) all += scratch->bytes[slot];
    return all;
}

static inline void scratch_free(Scratch *scratch) {
    for (int slot = 0; slot < SLOTS; slot++) free(scratch->slot[slot]);
    memset(scratch, 0, sizeof *scratch);
}

static inline int at_least(int a, int b) { return a > b ? a : b; }
static inline int at_most(int a, int b) { return a < b ? a : b; }
static inline size_t padded(size_t length) { return (length + WIDE - 1) / WIDE * WIDE; }

/* Radius of the box whose third power comes near a Gaussian (Gwosdek et al. 2011, equations 7, 11, 14), in float as
   in Pillow. */
static float box_radius(float sigma) {
    float variance = sigma * sigma / 3;
    float length = (float)sqrt(12.0 * variance + 1.0);
    float whole = (float)floor((length - 1.0) / 2.0);
    float part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance);
    part /= 6 * (variance - (whole + 1) * (whole + 1));
    return whole + part;
}

static double triangle(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double cubic(double x) { /* Keys' kernel with a = -1/2 */
    x = fabs(x);
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
    return 0.0;
}

static int32_t fixed_point(double weight) {
    return (int32_t)((weight < 0 ? -0.5 : 0.5) + weight * (1 << RESIZE_BITS));
}

/* Fills an axis: `length` source pixels become `whole` ones, of which `outputs` from `from` on are wanted, backwards if
   `reverse`. The weights are Pillow's, to the bit; `split` stores them as pairs for small products (see avx2_sum_rows):
   first the upper parts of two weights, 8 bits each, twice; then their lower parts, 16 bits each and signed.
   Returns 0 without memory. */
static int fill_axis(Axis *axis, Scratch *scratch, int slot, int length, int whole, int from, int outputs, int bicubic,
                     int reverse, int split) {
    double scale = (double)(float)length / whole, wider = scale < 1.0 ? 1.0 : scale;
    double support = (bicubic ? 2.0 : 1.0) * wider, inverse = 1.0 / wider;
    double reach = ceil(support) * 2 + 2; /* rounded up to pairs */
    int most = reach < length + 1 ? (int)reach : length + 1;
    double *weights = reserve(scratch, WEIGHTS, (size_t)most * sizeof *weights);
    int32_t *room = reserve(scratch, slot, ((size_t)most + 2) * outputs * sizeof *room);
    if (!weights || !room) return 0;
    axis->outputs = outputs, axis->stride = most, axis->lowest = length, axis->end = 0;
    axis->first = room, axis->count = room + outputs, axis->terms = room + 2 * (size_t)outputs;
    for (int i = 0; i < outputs; i++) {
        double centre = (from + i + 0.5) * scale, sum = 0.0;
        int begin = at_least((int)(centre - support + 0.5), 0);
        int count = at_most((int)(centre + support + 0.5), length) - begin;
        for (int j = 0; j < count; j++) {
            double place = (j + begin - centre + 0.5) * inverse;
            weights[j] = bicubic ? cubic(place) : triangle(place);
            sum += weights[j];
        }
        if (sum != 0.0)
            for (int j = 0; j < count; j++) weights[j] /= sum;
        while (count > 1 && fixed_point(weights[count - 1]) == 0) count--;
        int skip = 0;
        while (skip < count - 1 && fixed_point(weights[skip]) == 0) skip++;
        begin += skip, count -= skip;
        int place = reverse ? outputs - 1 - i : i;
        int32_t *terms = axis->terms + (size_t)place * axis->stride;
        axis->first[place] = begin, axis->count[place] = count;
        axis->lowest = at_most(axis->lowest, begin), axis->end = at_least(axis->end, begin + count);
        for (int j = 0; j < count; j++) terms[j] = fixed_point(weights[skip + j]);
        if (!split) continue;
        if (count % 2) terms[count] = 0;
        for (int j = 0; j < count; j += 2) {
            int32_t one = (int16_t)(terms[j] & 0xffff), two = (int16_t)(terms[j + 1] & 0xffff);
            uint32_t high = (uint32_t)((terms[j] - one) >> 16 & 0xff) | (uint32_t)((terms[j + 1] - two) >> 16 & 0xff) << 8;
            terms[j] = (int32_t)(high | high << 16);
            terms[j + 1] = (int32_t)((uint32_t)(one & 0xffff) | (uint32_t)(two & 0xffff) << 16);
        }
    }
    return 1;
}

#endif
