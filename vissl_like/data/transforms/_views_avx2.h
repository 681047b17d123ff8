/* The loops of _views_plain.h for processors with AVX2: the same results to the bit, WIDE pixels at a time. */
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

static AVX2 inline __m256i avx2_load(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)from); }
static AVX2 inline void avx2_store(uint8_t *to, __m256i bytes) { _mm256_storeu_si256((__m256i *)to, bytes); }

/* Eight bytes as eight integers of 32 bits. */
static AVX2 inline __m256i avx2_eight(const uint8_t *from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
}

/* Four times eight integers, in order, to bytes; what is outside 0..255 becomes the nearest of these. */
static AVX2 inline __m256i avx2_bytes(__m256i a, __m256i b, __m256i c, __m256i d) {
    __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* plain_luma of eight pixels. */
static AVX2 inline __m256i avx2_luma(__m256i r, __m256i g, __m256i b) {
    __m256i one = _mm256_or_si256(r, _mm256_slli_epi32(g, 16)), two = _mm256_or_si256(g, _mm256_slli_epi32(b, 16));
    /* 38470 has 16 bits, which are too many for a signed product: g counts in both pairs. */
    one = _mm256_madd_epi16(one, _mm256_set1_epi32(19595 | 19235 << 16));
    two = _mm256_madd_epi16(two, _mm256_set1_epi32(19235 | 7471 << 16));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(one, two), _mm256_set1_epi32(0x8000)), 16);
}

/* plain_mix of eight values, whole numbers, not clipped from below. */
static AVX2 inline __m256i avx2_mix(__m256i from, __m256i value, __m256 factor) {
    __m256 change = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_sub_epi32(value, from)));
    __m256 mixed = _mm256_add_ps(_mm256_cvtepi32_ps(from), change);
    return _mm256_cvttps_epi32(_mm256_min_ps(mixed, _mm256_set1_ps(255.0f)));
}

static AVX2 void avx2_blend(uint8_t *plane, size_t pixels, int from, float factor) {
    __m256i level = _mm256_set1_epi32(from), part[4];
    __m256 times = _mm256_set1_ps(factor);
    size_t i = 0;
    for (; i + WIDE <= pixels; i += WIDE) {
        for (int k = 0; k < 4; k++) part[k] = avx2_mix(level, avx2_eight(plane + i + 8 * k), times);
        avx2_store(plane + i, avx2_bytes(part[0], part[1], part[2], part[3]));
    }
    plain_blend(plane + i, pixels - i, from, factor);
}

static AVX2 void avx2_saturate(uint8_t *r, uint8_t *g, uint8_t *b, size_t pixels, float factor) {
    __m256 times = _mm256_set1_ps(factor);
    size_t i = 0;
    for (; i + WIDE <= pixels; i += WIDE) {
        __m256i reds[4], greens[4], blues[4];
        for (int k = 0; k < 4; k++) {
            __m256i red = avx2_eight(r + i + 8 * k), green = avx2_eight(g + i + 8 * k), blue = avx2_eight(b + i + 8 * k);
            __m256i grey = avx2_luma(red, green, blue);
            reds[k] = avx2_mix(grey, red, times);
            greens[k] = avx2_mix(grey, green, times);
            blues[k] = avx2_mix(grey, blue, times);
        }
        avx2_store(r + i, avx2_bytes(reds[0], reds[1], reds[2], reds[3]));
        avx2_store(g + i, avx2_bytes(greens[0], greens[1], greens[2], greens[3]));
        avx2_store(b + i, avx2_bytes(blues[0], blues[1], blues[2], blues[3]));
    }
    plain_saturate(r + i, g + i, b + i, pixels - i, factor);
}

static AVX2 void avx2_to_grey(uint8_t *r, const uint8_t *g, const uint8_t *b, size_t pixels) {
    __m256i part[4];
    size_t i = 0;
    for (; i + WIDE <= pixels; i += WIDE) {
        for (int k = 0; k < 4; k++)
            part[k] = avx2_luma(avx2_eight(r + i + 8 * k), avx2_eight(g + i + 8 * k), avx2_eight(b + i + 8 * k));
        avx2_store(r + i, avx2_bytes(part[0], part[1], part[2], part[3]));
    }
    plain_to_grey(r + i, g + i, b + i, pixels - i);
}

static AVX2 uint64_t avx2_total(__m256i fours) {
    uint64_t part[4];
    _mm256_storeu_si256((__m256i *)part, fours);
    return part[0] + part[1] + part[2] + part[3];
}

static AVX2 uint64_t avx2_sum_grey(const uint8_t *r, const uint8_t *g, const uint8_t *b, size_t pixels) {
    __m256i all = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + WIDE <= pixels; i += WIDE) {
        __m256i sum = _mm256_setzero_si256();
        for (int k = 0; k < 4; k++)
            sum = _mm256_add_epi32(
                sum, avx2_luma(avx2_eight(r + i + 8 * k), avx2_eight(g + i + 8 * k), avx2_eight(b + i + 8 * k)));
        __m256i even = _mm256_and_si256(sum, _mm256_set1_epi64x(0xffffffff)), odd = _mm256_srli_epi64(sum, 32);
        all = _mm256_add_epi64(all, _mm256_add_epi64(even, odd));
    }
    return avx2_total(all) + plain_sum_grey(r + i, g + i, b + i, pixels - i);
}

/* plain_hue of eight pixels. */
static AVX2 inline void avx2_hue_of_eight(__m256i *red, __m256i *green, __m256i *blue, __m256i shift) {
    __m256i r = *red, g = *green, b = *blue, one = _mm256_set1_epi32(1);
    __m256i high = _mm256_max_epi32(r, _mm256_max_epi32(g, b)), low = _mm256_min_epi32(r, _mm256_min_epi32(g, b));
    __m256i range = _mm256_sub_epi32(high, low);
    /* range * 255 / high in whole numbers: below 2^16, so the quotient of floats is never rounded up to the next. */
    __m256i saturation =
        _mm256_cvttps_epi32(_mm256_div_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_slli_epi32(range, 8), range)),
                                          _mm256_cvtepi32_ps(_mm256_max_epi32(high, one))));
    __m256i is_r = _mm256_cmpeq_epi32(r, high), is_g = _mm256_cmpeq_epi32(g, high);
    __m256i base = _mm256_blendv_epi8(_mm256_set1_epi32(4), _mm256_set1_epi32(2), is_g);
    base = _mm256_andnot_si256(is_r, base);
    __m256i least = _mm256_blendv_epi8(_mm256_blendv_epi8(r, b, is_g), g, is_r); /* it is the one to be low */
    __m256i plus = _mm256_cmpeq_epi32(least, low);
    __m256i middle = _mm256_sub_epi32(_mm256_add_epi32(r, _mm256_add_epi32(g, b)), _mm256_add_epi32(high, low));
    __m256 x = _mm256_div_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(high, middle)),
                             _mm256_cvtepi32_ps(_mm256_max_epi32(range, one)));
    /* base - 1 + x or base + 1 - x */
    __m256i side = _mm256_or_si256(plus, one); /* -1 or 1 */
    __m256 sign = _mm256_castsi256_ps(_mm256_andnot_si256(plus, _mm256_set1_epi32((int)0x80000000u)));
    __m256 h = _mm256_add_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(base, side)), _mm256_xor_ps(x, sign));
    __m256 turns = _mm256_div_ps(h, _mm256_set1_ps(6.0f));
    turns = _mm256_add_ps(turns, _mm256_and_ps(_mm256_cmp_ps(turns, _mm256_setzero_ps(), _CMP_LT_OQ), _mm256_set1_ps(1.0f)));
    __m256i level = _mm256_cvttps_epi32(_mm256_mul_ps(turns, _mm256_set1_ps(255.0f)));
    level = _mm256_and_si256(_mm256_add_epi32(level, shift), _mm256_set1_epi32(255));
    __m256i sixths = _mm256_add_epi32(_mm256_slli_epi32(level, 2), _mm256_slli_epi32(level, 1));
    __m256i w[3] = {
        _mm256_sub_epi32(_mm256_set1_epi32(510), _mm256_abs_epi32(_mm256_sub_epi32(sixths, _mm256_set1_epi32(765)))),
        _mm256_sub_epi32(_mm256_abs_epi32(_mm256_sub_epi32(sixths, _mm256_set1_epi32(510))), _mm256_set1_epi32(255)),
        _mm256_sub_epi32(_mm256_abs_epi32(_mm256_sub_epi32(sixths, _mm256_set1_epi32(1020))), _mm256_set1_epi32(255))};
    __m256i *out[3] = {red, green, blue};
    for (int c = 0; c < 3; c++) {
        __m256i weight = _mm256_min_epi32(_mm256_max_epi32(w[c], _mm256_setzero_si256()), _mm256_set1_epi32(255));
        /* Below 2^16 but not below 2^15: products of 32 bits. */
        __m256i part = _mm256_sub_epi32(_mm256_set1_epi32(65025), _mm256_madd_epi16(saturation, weight));
        __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_mullo_epi32(high, part)), _mm256_set1_ps(1.0f / 65025.0f));
        *out[c] = _mm256_cvttps_epi32(_mm256_add_ps(value, _mm256_set1_ps(0.5f)));
    }
}

static AVX2 void avx2_hue(uint8_t *r, uint8_t *g, uint8_t *b, size_t pixels, int shift) {
    __m256i by = _mm256_set1_epi32(shift);
    size_t i = 0;
    for (; i + WIDE <= pixels; i += WIDE) {
        __m256i reds[4], greens[4], blues[4];
        for (int k = 0; k < 4; k++) {
            reds[k] = avx2_eight(r + i + 8 * k), greens[k] = avx2_eight(g + i + 8 * k);
            blues[k] = avx2_eight(b + i + 8 * k);
            avx2_hue_of_eight(&reds[k], &greens[k], &blues[k], by);
        }
        avx2_store(r + i, avx2_bytes(reds[0], reds[1], reds[2], reds[3]));
        avx2_store(g + i, avx2_bytes(greens[0], greens[1], greens[2], greens[3]));
        avx2_store(b + i, avx2_bytes(blues[0], blues[1], blues[2], blues[3]));
    }
    plain_hue(r + i, g + i, b + i, pixels - i, shift);
}

/* plain_box for a known radius of at most 2. The weights are 24 bits wide, so products are made of their upper and
   lower 12; sums and ends stand side by side and are multiplied and added in one instruction. */
static AVX2 inline void avx2_box_of(const uint8_t *const *rows, const int radius, uint8_t *restrict out, size_t pixels,
                                    uint32_t weight, uint32_t end_weight) {
    __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(1 << (BLUR_BITS - 1));
    __m256i upper = _mm256_set1_epi32((int)(weight >> 12 | (end_weight >> 12) << 16));
    __m256i lower = _mm256_set1_epi32((int)((weight & 4095) | (end_weight & 4095) << 16));
    for (size_t block = 0; block < pixels; block += WIDE) {
        size_t i = block + WIDE <= pixels ? block : pixels - WIDE;
        __m256i one = avx2_load(rows[0] + i), two = avx2_load(rows[2 * radius + 2] + i), sums[2], ends[2], part[4];
        ends[0] = _mm256_add_epi16(_mm256_unpacklo_epi8(one, zero), _mm256_unpacklo_epi8(two, zero));
        ends[1] = _mm256_add_epi16(_mm256_unpackhi_epi8(one, zero), _mm256_unpackhi_epi8(two, zero));
        one = avx2_load(rows[1] + i);
        sums[0] = _mm256_unpacklo_epi8(one, zero), sums[1] = _mm256_unpackhi_epi8(one, zero);
        for (int j = 2; j < 2 * radius + 2; j++) {
            one = avx2_load(rows[j] + i);
            sums[0] = _mm256_add_epi16(sums[0], _mm256_unpacklo_epi8(one, zero));
            sums[1] = _mm256_add_epi16(sums[1], _mm256_unpackhi_epi8(one, zero));
        }
        for (int k = 0; k < 4; k++) {
            __m256i pairs = k % 2 ? _mm256_unpackhi_epi16(sums[k / 2], ends[k / 2])
                                  : _mm256_unpacklo_epi16(sums[k / 2], ends[k / 2]);
            __m256i high = _mm256_slli_epi32(_mm256_madd_epi16(pairs, upper), 12);
            __m256i low = _mm256_add_epi32(_mm256_madd_epi16(pairs, lower), half);
            part[k] = _mm256_srli_epi32(_mm256_add_epi32(high, low), BLUR_BITS);
        }
        avx2_store(out + i,
                   _mm256_packus_epi16(_mm256_packs_epi32(part[0], part[1]), _mm256_packs_epi32(part[2], part[3])));
    }
}

static AVX2 void avx2_box(const uint8_t *const *rows, int radius, uint8_t *restrict out, size_t pixels, uint32_t weight,
                          uint32_t end_weight) {
    if (pixels < WIDE || radius > 2)
        plain_box(rows, radius, out, pixels, weight, end_weight);
    else if (radius == 0)
        avx2_box_of(rows, 0, out, pixels, weight, end_weight);
    else if (radius == 1)
        avx2_box_of(rows, 1, out, pixels, weight, end_weight);
    else
        avx2_box_of(rows, 2, out, pixels, weight, end_weight);
}

/* plain_sum_rows, two rows at once. The weight k of a row is 2^16 times an upper part of 8 bits plus a signed lower part
   of 16. Upper products are added up in 16 bits: they may wrap round, as they are shifted by 16 in the end, where only
   the sum modulo 2^32 matters. Those of a pair do not: two upper parts together are at most 83 (bicubic). */
static AVX2 void avx2_sum_rows(const uint8_t *in, size_t stride, const int32_t *terms, int count, uint8_t *restrict out,
                               size_t pixels) {
    __m256i zero = _mm256_setzero_si256();
    for (size_t block = 0; block < pixels; block += WIDE) {
        size_t from = pixels < WIDE || block + WIDE <= pixels ? block : pixels - WIDE;
        __m256i high[2] = {zero, zero}, low[4];
        for (int k = 0; k < 4; k++) low[k] = _mm256_set1_epi32(1 << (RESIZE_BITS - 1));
        for (int j = 0; j < count; j += 2) {
            const uint8_t *row = in + (size_t)j * stride + from;
            __m256i one = avx2_load(row), two = avx2_load(j + 1 < count ? row + stride : row);
            __m256i uppers = _mm256_set1_epi32(terms[j]), lowers = _mm256_set1_epi32(terms[j + 1]);
            for (int k = 0; k < 2; k++) {
                __m256i pairs = k ? _mm256_unpackhi_epi8(one, two) : _mm256_unpacklo_epi8(one, two);
                high[k] = _mm256_add_epi16(high[k], _mm256_maddubs_epi16(pairs, uppers));
                low[2 * k] = _mm256_add_epi32(low[2 * k], _mm256_madd_epi16(_mm256_unpacklo_epi8(pairs, zero), lowers));
                low[2 * k + 1] =
                    _mm256_add_epi32(low[2 * k + 1], _mm256_madd_epi16(_mm256_unpackhi_epi8(pairs, zero), lowers));
            }
        }
        __m256i value[4];
        for (int k = 0; k < 4; k++) {
            __m256i upper = k % 2 ? _mm256_unpackhi_epi16(zero, high[k / 2]) : _mm256_unpacklo_epi16(zero, high[k / 2]);
            value[k] = _mm256_srai_epi32(_mm256_add_epi32(low[k], upper), RESIZE_BITS);
        }
        avx2_store(out + from,
                   _mm256_packus_epi16(_mm256_packs_epi32(value[0], value[1]), _mm256_packs_epi32(value[2], value[3])));
    }
}

/* 16 rows of 32 bytes: the columns, [column][row], of 16 bytes each. */
static AVX2 inline void avx2_turn_half(const uint8_t *in, size_t in_stride, uint8_t *out, size_t out_stride) {
    __m256i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = avx2_load(in + (size_t)i * in_stride);
    /* Each step interleaves row i with row i + 8: after four of them, bytes of a column stand together. */
    for (int step = 0; step < 4; step++) {
        for (int i = 0; i < 8; i++) {
            b[2 * i] = _mm256_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm256_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 16; i++) a[i] = b[i];
    }
    for (int i = 0; i < 16; i++) {
        _mm_storeu_si128((__m128i *)(out + (size_t)i * out_stride), _mm256_castsi256_si128(a[i]));
        _mm_storeu_si128((__m128i *)(out + (size_t)(i + 16) * out_stride), _mm256_extracti128_si256(a[i], 1));
    }
}

static AVX2 void avx2_turn(const uint8_t *in, size_t in_stride, int rows, size_t length, uint8_t *restrict out,
                           size_t out_stride) {
    uint8_t part[WIDE * WIDE] = {0}, turned[WIDE * WIDE];
    for (int i = 0; i < rows; i += WIDE) {
        int lines = at_most(rows - i, WIDE);
        for (size_t j = 0; j < length; j += WIDE) {
            const uint8_t *from = in + (size_t)i * in_stride + j;
            uint8_t *to = out + j * out_stride + i;
            size_t wide = length - j < WIDE ? length - j : WIDE;
            if (lines == WIDE && wide == WIDE) {
                avx2_turn_half(from, in_stride, to, out_stride);
                avx2_turn_half(from + WIDE / 2 * in_stride, in_stride, to + WIDE / 2, out_stride);
                continue;
            }
            for (int k = 0; k < lines; k++) memcpy(part + k * WIDE, from + (size_t)k * in_stride, wide);
            avx2_turn_half(part, WIDE, turned, WIDE);
            avx2_turn_half(part + WIDE / 2 * WIDE, WIDE, turned + WIDE / 2, WIDE);
            for (size_t k = 0; k < wide; k++) memcpy(to + k * out_stride, turned + k * WIDE, (size_t)lines);
        }
    }
}
