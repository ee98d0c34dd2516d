// What PrototypeCrossAttention does with the tokens of one image, in one pass over them: norm, depthwise convolution,
// projection, unit length, scores, ban and maximum. A block of tokens goes through all of it while it is in the cache,
// so that no map but the keys is ever written to memory. Compiled and called by native.py; float32 throughout.

#include <math.h>
#include <omp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define PANEL 16 // outputs of a product that are made together, as in native.py
#define VECTORS (PANEL / LANES)
// Tokens of a product that are made together: with the vectors of a panel, as many sums as fit into the registers.
#define GROUP (LANES == 16 ? 12 : 6)
#define BAN -1e38f // as in prototype.py
#define BLOCK 132 // most tokens of a block: a multiple of GROUP

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t indices __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vector load(const float *from) { return *(const vector *)from; }
static inline void store(float *to, vector value) { *(vector *)to = value; }

// What does not change from token to token, as in native.py.
struct layer {
    int height, width, dim, heads, queries, padded_queries;
    const float *scale, *shift;     // [dim]: the norm
    const float *taps, *conv_bias;  // [9, dim], [dim]: the depthwise convolution
    const float *weight, *bias;     // [dim / PANEL, dim, PANEL], [dim]: the projection
    const float *target;            // [heads, padded_queries / PANEL, dim / heads, PANEL]
    const float *source, *position; // [height * width, dim]
    const bool *banned;             // [height * width, queries]
    bool release;                   // empty masks one by one; otherwise only when all queries of the image have one
};

// The norm and the 3x3 convolution of a row's tokens [first, last), into output [last - first, dim]. A column of inputs
// is read once, and belongs to the outputs left of it, at it and right of it; output has two rows to spare on either side.
static void normalize_and_convolve(const struct layer *l, int row, int first, int last, float *output) {
    const int dim = l->dim;
    for (int t = first; t < last; t++) memcpy(output + (size_t)(t - first) * dim, l->conv_bias, sizeof(float) * dim);
    for (int col = first - 1; col <= last; col++) {
        if (col < 0 || col == l->width) continue; // zeros, and after the norm
        float *here = output + (ptrdiff_t)(col - first) * dim;
        for (int c = 0; c < dim; c += LANES) {
            vector sums[3] = {load(here - dim + c), load(here + c), load(here + dim + c)};
            for (int r = -1; r <= 1; r++) {
                if (row + r < 0 || row + r == l->height) continue;
                const size_t at = ((size_t)(row + r) * l->width + col) * dim + c;
                const vector x = (load(l->source + at) + load(l->position + at)) * load(l->scale + c) + load(l->shift + c);
                // The output right of this column has it under its left tap.
                for (int tap = 0; tap < 3; tap++) sums[2 - tap] += load(l->taps + ((r + 1) * 3 + tap) * dim + c) * x;
            }
            for (int i = 0; i < 3; i++) store(here + (i - 1) * dim + c, sums[i]);
        }
    }
}

// sum += rows [GROUP, length] times panel [length, PANEL].
static inline __attribute__((always_inline)) void multiply(
    vector sum[GROUP][VECTORS], const float *rows, int stride, const float *panel, int length) {
    for (int c = 0; c < length; c++) {
        vector factor[VECTORS];
        for (int v = 0; v < VECTORS; v++) factor[v] = load(panel + c * PANEL + v * LANES);
#pragma GCC unroll 12
        for (int t = 0; t < GROUP; t++)
            for (int v = 0; v < VECTORS; v++) sum[t][v] += rows[(size_t)t * stride + c] * factor[v];
    }
}

static void project(const struct layer *l, int count, const float *x, float *key) {
    for (int o = 0; o < l->dim; o += PANEL)
        for (int t = 0; t < count; t += GROUP) {
            vector sum[GROUP][VECTORS];
            for (int i = 0; i < GROUP; i++)
                for (int v = 0; v < VECTORS; v++) sum[i][v] = load(l->bias + o + v * LANES);
            multiply(sum, x + (size_t)t * l->dim, l->dim, l->weight + (size_t)o * l->dim, l->dim);
            for (int i = 0; i < GROUP; i++)
                for (int v = 0; v < VECTORS; v++) store(key + (size_t)(t + i) * l->dim + o + v * LANES, sum[i][v]);
        }
}

static void normalize(int dim, float *key) {
    vector squares = {0};
    for (int c = 0; c < dim; c += LANES) squares += load(key + c) * load(key + c);
    float square = 0;
    for (int i = 0; i < LANES; i++) square += squares[i];
    const float length = sqrtf(square), factor = 1 / (length < 1e-12f ? 1e-12f : length);
    for (int c = 0; c < dim; c += LANES) store(key + c, load(key + c) * factor);
}

// Compares the keys of tokens [first, first + count) with every target. Only a higher score takes the place of another,
// so that of equal ones the first token stays.
static void compare(
    const struct layer *l, int first, int count, const float *key, const float *bans, float *best, int32_t *index) {
    const int head_dim = l->dim / l->heads;
    for (int h = 0; h < l->heads; h++)
        for (int q = 0; q < l->padded_queries; q += PANEL) {
            const size_t entry = (size_t)h * l->padded_queries + q;
            vector top[VECTORS];
            indices at[VECTORS];
            for (int v = 0; v < VECTORS; v++) {
                top[v] = load(best + entry + v * LANES);
                at[v] = *(indices *)(index + entry + v * LANES);
            }
            for (int t = 0; t < count; t += GROUP) {
                vector score[GROUP][VECTORS];
                for (int i = 0; i < GROUP; i++)
                    for (int v = 0; v < VECTORS; v++)
                        score[i][v] = load(bans + (size_t)(t + i) * l->padded_queries + q + v * LANES);
                multiply(score, key + (size_t)t * l->dim + h * head_dim, l->dim, l->target + entry * head_dim, head_dim);
                for (int i = 0; i < GROUP && t + i < count; i++)
                    for (int v = 0; v < VECTORS; v++) {
                        const indices higher = score[i][v] > top[v]; // all bits where it is
                        at[v] = (at[v] & ~higher) | ((first + t + i) & higher);
                        top[v] = (vector)(((indices)top[v] & ~higher) | ((indices)score[i][v] & higher));
                    }
            }
            for (int v = 0; v < VECTORS; v++) {
                store(best + entry + v * LANES, top[v]);
                *(indices *)(index + entry + v * LANES) = at[v];
            }
        }
}

// What is added to the score of a banned token, [queries]: nothing for queries that may look everywhere.
static void set_bans(const struct layer *l, float *ban) {
    const int tokens = l->height * l->width;
    int empty = l->queries; // queries that are banned from all tokens so far
    for (int q = 0; q < l->queries; q++) ban[q] = 0;
    for (int t = 0; t < tokens && empty; t++)
        for (int q = 0; q < l->queries; q++)
            if (ban[q] == 0 && !l->banned[(size_t)t * l->queries + q]) ban[q] = BAN, empty--;
    if (!l->release && empty < l->queries)
        for (int q = 0; q < l->queries; q++) ban[q] = BAN;
}

// Writes the keys of all tokens [height * width, dim], and of each query those that its heads chose, prototype
// [queries, dim]; what they chose, index, and its score, best, both [heads, padded_queries]. Of the last two the caller
// gives as many pieces as there are threads, filled with 0 and minus infinity: each thread has its own, and the first is
// the result. Returns whether there was memory.
bool pick(const struct layer *l, int threads, float *key, float *prototype, float *best, int32_t *index) {
    const int blocks_per_row = (l->width + BLOCK - 1) / BLOCK, entries = l->heads * l->padded_queries;
    float *ban = malloc(sizeof(float) * l->queries);
    bool failed = !ban;
    if (ban) set_bans(l, ban);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num();
        float *my_best = best + (size_t)me * entries;
        int32_t *my_index = index + (size_t)me * entries;
        // Cleared, because the last group of a row may go beyond its tokens, and the last panel beyond the queries.
        float *memory = calloc((size_t)(2 * BLOCK + 4) * l->dim + (size_t)BLOCK * l->padded_queries, sizeof(float));
        if (!memory) {
#pragma omp atomic write
            failed = true;
        }
#pragma omp barrier
        float *x = memory + 2 * l->dim, *keys = x + (size_t)(BLOCK + 2) * l->dim, *bans = keys + (size_t)BLOCK * l->dim;
#pragma omp for schedule(dynamic)
        for (int block = 0; block < l->height * blocks_per_row; block++) {
            if (failed) continue;
            const int row = block / blocks_per_row, part = block % blocks_per_row;
            const int from = l->width * part / blocks_per_row, to = l->width * (part + 1) / blocks_per_row;
            const int first = row * l->width + from, count = to - from;
            normalize_and_convolve(l, row, from, to, x);
            project(l, count, x, keys);
            for (int t = 0; t < count; t++) {
                normalize(l->dim, keys + (size_t)t * l->dim);
                const bool *banned = l->banned + (size_t)(first + t) * l->queries;
                for (int q = 0; q < l->queries; q++) bans[t * l->padded_queries + q] = banned[q] * ban[q];
            }
            memcpy(key + (size_t)first * l->dim, keys, sizeof(float) * count * l->dim);
            compare(l, first, count, keys, bans, my_best, my_index);
        }
        free(memory);
    }
    free(ban);
    for (int i = entries; i < threads * entries; i++) {
        const int e = i % entries;
        if (best[i] > best[e] || (best[i] == best[e] && index[i] < index[e])) best[e] = best[i], index[e] = index[i];
    }
    const int head_dim = l->dim / l->heads;
    for (int h = 0; h < l->heads; h++)
        for (int q = 0; q < l->queries; q++) {
            const int e = h * l->padded_queries + q, channel = h * head_dim;
            memcpy(prototype + (size_t)q * l->dim + channel, key + (size_t)index[e] * l->dim + channel,
                   sizeof(float) * head_dim);
            if (best[e] <= BAN / 2) best[e] = 0; // all of its tokens are banned
        }
    return !failed;
}
