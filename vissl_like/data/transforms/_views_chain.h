/* A view from an image, by the loops whose names begin with LOOP(...). Included once per set of loops, with TARGET what
   the functions are compiled for, and SPLIT_TERMS whether LOOP(sum_rows) wants weights in pairs (see fill_axis). */

/* A part of an image: rows of `stride` bytes, each followed by WIDE - 1 bytes that may be read. Either as the image has
   it, [row][column][channel], or turned, [column][channel][row]. */
typedef struct {
    const uint8_t *pixels;
    size_t stride;
    int top, left;
} LOOP(Source);

/* Whether Pillow would resize the heights first: when they shrink by much more than the widths. */
static int LOOP(vertical_first)(const View *view, int by_cost) {
    int64_t less_tall = (int64_t)view->height - view->tall, less_wide = (int64_t)view->width - view->wide;
    return by_cost && less_tall > 0 && less_tall > 2 * less_wide;
}

/* Both passes of a resize. `first` runs over the rows of `in`, `step` rows from one to the next, and `second` along them,
   over pixels of `channels` bytes. The result is [channel][second][first], planes `apart` bytes from each other. */
static TARGET void LOOP(resize)(const uint8_t *in, size_t stride, int step, int channels, const Axis *first,
                                const Axis *second, uint8_t *out, size_t out_stride, size_t apart, uint8_t *strip,
                                uint8_t *turned) {
    size_t used = (size_t)(second->end - second->lowest) * channels, line = padded(used);
    int length = first->outputs;
    uint8_t row[WIDE];
    for (int from = 0; from < length; from += WIDE) {
        int lines = at_most(length - from, WIDE);
        for (int i = 0; i < lines; i++) {
            int at = from + i;
            LOOP(sum_rows)(in + (size_t)first->first[at] * step * stride + (size_t)second->lowest * channels,
                           step * stride, first->terms + (size_t)at * first->stride, first->count[at],
                           strip + (size_t)i * line, used);
        }
        LOOP(turn)(strip, line, lines, used, turned, WIDE);
        for (int c = 0; c < channels; c++)
            for (int i = 0; i < second->outputs; i++) {
                uint8_t *to = out + c * apart + (size_t)i * out_stride + from;
                LOOP(sum_rows)(turned + ((size_t)(second->first[i] - second->lowest) * channels + c) * WIDE,
                               (size_t)channels * WIDE, second->terms + (size_t)i * second->stride, second->count[i],
                               lines == WIDE ? to : row, WIDE);
                if (lines < WIDE) memcpy(to, row, (size_t)lines);
            }
    }
}

/* The crop at its size, flipped, as planes in the view's memory. */
static TARGET int LOOP(crop)(const View *view, const LOOP(Source) *source, int channels, int vertical_first,
                             Scratch *scratch) {
    size_t size = (size_t)view->size, line = padded(size);
    Axis across, along;
    if (!fill_axis(&across, scratch, AXIS_ONE, view->width, view->wide, view->right, view->size, view->bicubic,
                   view->flip, SPLIT_TERMS) ||
        !fill_axis(&along, scratch, AXIS_TWO, view->height, view->tall, view->down, view->size, view->bicubic,
                   view->vertical_flip, SPLIT_TERMS))
        return 0;
    const Axis *second = vertical_first ? &across : &along;
    size_t used = (size_t)(second->end - second->lowest) * (vertical_first ? channels : 1);
    uint8_t *strip = reserve(scratch, STRIP, WIDE * padded(used));
    uint8_t *turned = reserve(scratch, TURNED, WIDE * padded(used));
    if (!strip || !turned) return 0;
    size_t down = (size_t)(view->top - source->top), right = (size_t)(view->left - source->left);
    if (!vertical_first) {
        for (int c = 0; c < channels; c++)
            LOOP(resize)(source->pixels + (right * channels + c) * source->stride + down, source->stride, channels, 1,
                         &across, &along, view->out + c * size * size, size, 0, strip, turned);
        return 1;
    }
    uint8_t *sideways = reserve(scratch, PLANE_ONE, channels * size * line);
    if (!sideways) return 0;
    LOOP(resize)(source->pixels + down * source->stride + right * channels, source->stride, 1, channels, &along, &across,
                 sideways, line, size * line, strip, turned);
    for (int c = 0; c < channels; c++)
        LOOP(turn)(sideways + c * size * line, line, view->size, size, view->out + c * size * size, size);
    return 1;
}

static TARGET void LOOP(jitter)(const View *view, int channels) {
    size_t plane = (size_t)view->size * view->size, all = plane * channels;
    uint8_t *r = view->out, *g = r + plane, *b = g + plane;
    for (int i = 0; i < view->steps; i++) {
        const Step *step = &view->jitter[i];
        if (step->kind == BRIGHTNESS) {
            LOOP(blend)(r, all, 0, (float)step->amount);
        } else if (step->kind == CONTRAST) {
            uint64_t sum = channels == 3 ? LOOP(sum_grey)(r, g, b, plane) : plain_sum(r, plane);
            LOOP(blend)(r, all, (int)((double)sum / (double)plane + 0.5), (float)step->amount);
        } else if (channels == 3 && step->kind == SATURATION) {
            LOOP(saturate)(r, g, b, plane, (float)step->amount);
        } else if (channels == 3) {
            LOOP(hue)(r, g, b, plane, (int)fmod(trunc(step->amount * 255), 256.0) & 255);
        }
    }
}

/* One pass of a box of any radius along the columns of a plane: sums of columns are kept while moving down. */
static TARGET void LOOP(far_box)(const uint8_t *in, int size, int radius, uint32_t weight, uint32_t end_weight,
                                 uint32_t *sums, uint8_t *restrict out) {
    size_t width = (size_t)size;
    const uint8_t *last = in + (width - 1) * width;
    uint32_t above = (uint32_t)radius + 1, below = (uint32_t)at_least(radius - size, 0);
    for (size_t x = 0; x < width; x++) sums[x] = above * in[x] + below * last[x];
    for (int y = 0; y < at_most(radius, size); y++)
        for (size_t x = 0; x < width; x++) sums[x] += in[y * width + x];
    for (int y = 0; y < size; y++, out += width) {
        const uint8_t *leaves = in + (size_t)at_least(y - radius - 1, 0) * width;
        const uint8_t *enters = in + (size_t)at_most(y + radius, size - 1) * width;
        const uint8_t *end = in + (size_t)at_most(y + radius + 1, size - 1) * width;
        for (size_t x = 0; x < width; x++) {
            uint32_t sum = sums[x] + enters[x] - leaves[x], ends = (uint32_t)leaves[x] + end[x];
            sums[x] = sum;
            out[x] = (uint8_t)((sum * weight + ends * end_weight + (1u << (BLUR_BITS - 1))) >> BLUR_BITS);
        }
    }
}

/* Three passes of a box along the rows, then three along the columns, of a plane of side `size`, in place. */
static TARGET int LOOP(blur)(uint8_t *plane, int size, float box, Scratch *scratch) {
    int radius = (int)box, side = radius + 1;
    uint32_t weight = (uint32_t)((float)(1 << BLUR_BITS) / (box * 2 + 1));
    uint32_t end_weight = ((1u << BLUR_BITS) - (uint32_t)(2 * radius + 1) * weight) / 2;
    size_t width = (size_t)size, all = width * width;
    uint8_t *one = reserve(scratch, PLANE_ONE, all + padded(width + 2 * (size_t)side));
    uint8_t *two = reserve(scratch, PLANE_TWO, all + padded(width + 2 * (size_t)side));
    if (!one || !two) return 0;
    const uint8_t *rows[MOST_ROWS];
    if (2 * radius + 3 > MOST_ROWS) {
        uint32_t *sums = reserve(scratch, SUMS, width * sizeof *sums);
        if (!sums) return 0;
        uint8_t *path[] = {one, two, one, two, plane, one, two, plane};
        LOOP(turn)(plane, width, size, width, one, width);
        for (int pass = 0; pass < 7; pass++) {
            if (pass == 3)
                LOOP(turn)(two, width, size, width, plane, width);
            else
                LOOP(far_box)(path[pass], size, radius, weight, end_weight, sums, path[pass + 1]);
        }
        return 1;
    }
    for (int y = 0; y < size; y++) {
        uint8_t *line = plane + y * width;
        for (int pass = 0; pass < 3; pass++) {
            uint8_t *from = pass % 2 ? two : one, *to = pass == 2 ? line : pass ? one + side : two + side;
            if (pass == 0) memcpy(from + side, line, width);
            memset(from, from[side], (size_t)side);
            memset(from + side + width, from[side + width - 1], (size_t)side);
            for (int j = 0; j < 2 * radius + 3; j++) rows[j] = from + j;
            LOOP(box)(rows, radius, to, width, weight, end_weight);
        }
    }
    for (int pass = 0; pass < 3; pass++) {
        const uint8_t *from = pass == 0 ? plane : pass == 1 ? one : two;
        uint8_t *to = pass == 0 ? one : pass == 1 ? two : plane;
        for (int y = 0; y < size; y++) {
            for (int j = 0; j < 2 * radius + 3; j++)
                rows[j] = from + (size_t)at_most(at_least(y + j - side, 0), size - 1) * width;
            LOOP(box)(rows, radius, to + y * width, width, weight, end_weight);
        }
    }
    return 1;
}

/* Everything after the resize. */
static TARGET int LOOP(finish)(const View *view, int channels, Scratch *scratch) {
    size_t plane = (size_t)view->size * view->size;
    uint8_t *out = view->out;
    int repeat = view->grayscale && channels == 3, worked = repeat ? 1 : channels;
    LOOP(jitter)(view, channels);
    if (repeat) LOOP(to_grey)(out, out + plane, out + 2 * plane, plane);
    for (int c = 0; view->box > 0 && c < worked; c++)
        if (!LOOP(blur)(out + c * plane, view->size, view->box, scratch)) return 0;
    if (view->solarize) plain_solarize(out, plane * worked);
    for (int c = 1; repeat && c < 3; c++) memcpy(out + c * plane, out, plane);
    return 1;
}

/* The part of an image that the views need which are resized heights first, or the others. The image itself serves the
   former, unless a view might need less than WIDE bytes of a row: reading WIDE could go past the image's end. A view
   needs all of its crop but for a few pixels of weight 0 at the ends, if it is not cut out of a larger result.
   Returns 0 without memory. */
static TARGET int LOOP(find_source)(const Picture *picture, const View *views, int count, int by_cost, int vertical,
                                    Scratch *scratch, LOOP(Source) *source) {
    int top = picture->height, left = picture->width, bottom = 0, right = 0, narrowest = picture->width;
    for (int i = 0; i < count; i++) {
        const View *view = &views[i];
        if (LOOP(vertical_first)(view, by_cost) != vertical) continue;
        top = at_most(top, view->top), left = at_most(left, view->left);
        bottom = at_least(bottom, view->top + view->height), right = at_least(right, view->left + view->width);
        narrowest = at_most(narrowest, view->wide == view->size ? view->width : 0);
    }
    if (bottom == 0) return 1;
    int channels = picture->channels;
    size_t height = (size_t)(bottom - top), length = (size_t)(right - left) * channels;
    size_t line = (size_t)picture->width * channels;
    const uint8_t *from = picture->pixels + top * line + (size_t)left * channels;
    *source = (LOOP(Source)){from, line, top, left};
    if (vertical && (size_t)narrowest * channels >= 4 * WIDE) return 1;
    source->stride = padded(vertical ? length : height) + WIDE;
    uint8_t *copy = reserve(scratch, vertical ? ROWS : SOURCE, source->stride * (vertical ? height : length) + WIDE);
    if (!copy) return 0;
    if (vertical)
        for (size_t y = 0; y < height; y++) memcpy(copy + y * source->stride, from + y * line, length);
    else
        LOOP(turn)(from, line, (int)height, length, copy, source->stride);
    source->pixels = copy;
    return 1;
}

/* All views of an image. Returns 0 without memory. */
static TARGET int LOOP(render)(const Picture *picture, const View *views, int count, int by_cost, Scratch *scratch) {
    LOOP(Source) sources[2] = {{0}};
    for (int vertical = 0; vertical < 2; vertical++)
        if (!LOOP(find_source)(picture, views, count, by_cost, vertical, scratch, &sources[vertical])) return 0;
    for (int i = 0; i < count; i++) {
        int vertical = LOOP(vertical_first)(&views[i], by_cost);
        if (!LOOP(crop)(&views[i], &sources[vertical], picture->channels, vertical, scratch)) return 0;
        if (!LOOP(finish)(&views[i], picture->channels, scratch)) return 0;
    }
    return 1;
}
