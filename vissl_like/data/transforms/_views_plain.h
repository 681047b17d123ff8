/* The loops over pixels in plain C: what every machine can run, and the meaning of the faster ones in _views_avx2.h.
   Planes are uint8, one channel each. Every result equals Pillow's to the bit. */

/* 0.299 r + 0.587 g + 0.114 b in 16 bits after the point. */
static inline int plain_luma(int r, int g, int b) {
    return (int)(((uint32_t)r * 19595 + (uint32_t)g * 38470 + (uint32_t)b * 7471 + 0x8000) >> 16);
}

static inline uint8_t plain_mix(int from, int value, float factor) {
    float mixed = (float)from + factor * (float)(value - from);
    return (uint8_t)(mixed <= 0.0f ? 0.0f : mixed >= 255.0f ? 255.0f : mixed);
}

static void plain_blend(uint8_t *plane, size_t pixels, int from, float factor) {
    for (size_t i = 0; i < pixels; i++) plane[i] = plain_mix(from, plane[i], factor);
}

static void plain_saturate(uint8_t *r, uint8_t *g, uint8_t *b, size_t pixels, float factor) {
    for (size_t i = 0; i < pixels; i++) {
        int grey = plain_luma(r[i], g[i], b[i]);
        r[i] = plain_mix(grey, r[i], factor);
        g[i] = plain_mix(grey, g[i], factor);
        b[i] = plain_mix(grey, b[i], factor);
    }
}

static void plain_to_grey(uint8_t *r, const uint8_t *g, const uint8_t *b, size_t pixels) {
    for (size_t i = 0; i < pixels; i++) r[i] = (uint8_t)plain_luma(r[i], g[i], b[i]);
}

static uint64_t plain_sum_grey(const uint8_t *r, const uint8_t *g, const uint8_t *b, size_t pixels) {
    uint64_t sum = 0;
    for (size_t i = 0; i < pixels; i++) sum += (uint64_t)plain_luma(r[i], g[i], b[i]);
    return sum;
}

static uint64_t plain_sum(const uint8_t *plane, size_t pixels) {
    uint64_t sum = 0;
    for (size_t i = 0; i < pixels; i++) sum += plane[i];
    return sum;
}

static void plain_solarize(uint8_t *plane, size_t pixels) {
    for (size_t i = 0; i < pixels; i++) plane[i] = plane[i] >= 128 ? 255 - plane[i] : plane[i];
}

/* To a hue, saturation and value of 8 bits each, the hue shifted (modulo 256), and back.
   There: the hue is h/6 turns with h = base + (difference of two channels) / range, and since one of the two is the
   largest or the smallest channel, h is a whole number plus or minus x = (largest - middle) / range. The roundings to
   float are those of Pillow's formula. Back: channel = value * (1 - saturation * w), where w is 0 to 1 by the hue; as a
   fraction of 65025 this is exact, and never half way between two integers. */
static void plain_hue(uint8_t *red, uint8_t *green, uint8_t *blue, size_t pixels, int shift) {
    for (size_t i = 0; i < pixels; i++) {
        int r = red[i], g = green[i], b = blue[i];
        int high = at_least(r, at_least(g, b)), low = at_most(r, at_most(g, b)), range = high - low;
        int saturation = range * 255 / at_least(high, 1);
        int base = r == high ? 0 : g == high ? 2 : 4;
        int plus = r == high ? g == low : g == high ? b == low : r == low;
        float x = (float)(high - (r + g + b - high - low)) / (float)at_least(range, 1);
        float h = plus ? (float)(base - 1) + x : (float)(base + 1) - x;
        float turns = h / 6.0f;
        turns = turns < 0.0f ? turns + 1.0f : turns;
        int sixths = (((int)(turns * 255.0f) + shift) & 255) * 6;
        int w[3] = {510 - abs(sixths - 765), abs(sixths - 510) - 255, abs(sixths - 1020) - 255};
        uint8_t *out[3] = {red, green, blue};
        for (int c = 0; c < 3; c++) {
            int part = 65025 - saturation * at_most(at_least(w[c], 0), 255);
            out[c][i] = (uint8_t)((float)(high * part) * (1.0f / 65025.0f) + 0.5f);
        }
    }
}

/* One pass of a box blur over `pixels` pixels side by side: row 0 and row 2 * radius + 2 are the ends, which count in
   part. In and out are apart. */
static void plain_box(const uint8_t *const *rows, int radius, uint8_t *restrict out, size_t pixels, uint32_t weight,
                      uint32_t end_weight) {
    int last = 2 * radius + 2;
    for (size_t i = 0; i < pixels; i++) {
        uint32_t sum = 0, ends = (uint32_t)rows[0][i] + rows[last][i];
        for (int j = 1; j < last; j++) sum += rows[j][i];
        out[i] = (uint8_t)((sum * weight + ends * end_weight + (1u << (BLUR_BITS - 1))) >> BLUR_BITS);
    }
}

/* out[i] = sum of terms[j] * in[j * stride + i], rounded and clipped, for `pixels` pixels side by side. Works on WIDE of
   them at once, the last time on those that come last; fewer than WIDE are padded, read and written as if they were WIDE. */
static void plain_sum_rows(const uint8_t *in, size_t stride, const int32_t *terms, int count, uint8_t *restrict out,
                           size_t pixels) {
    for (size_t block = 0; block < pixels; block += WIDE) {
        size_t from = pixels < WIDE || block + WIDE <= pixels ? block : pixels - WIDE;
        int32_t sums[WIDE];
        for (int i = 0; i < WIDE; i++) sums[i] = 1 << (RESIZE_BITS - 1);
        for (int j = 0; j < count; j++) {
            const uint8_t *row = in + (size_t)j * stride + from;
            for (int i = 0; i < WIDE; i++) sums[i] += terms[j] * row[i];
        }
        for (int i = 0; i < WIDE; i++) {
            int value = sums[i] >> RESIZE_BITS;
            out[from + i] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
        }
    }
}

/* out[j][i] = in[i][j] for `rows` rows of `length` bytes each. */
static void plain_turn(const uint8_t *in, size_t in_stride, int rows, size_t length, uint8_t *restrict out,
                       size_t out_stride) {
    for (int i = 0; i < rows; i++)
        for (size_t j = 0; j < length; j++) out[j * out_stride + i] = in[(size_t)i * in_stride + j];
}
