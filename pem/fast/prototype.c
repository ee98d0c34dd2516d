// PrototypeCrossAttention out of training. What it does with the tokens is one pass over them: norm, depthwise
// convolution, projection, unit length, scores, ban and maximum. A block of tokens goes through all of it while it is
// in the cache, so that no map is ever written to memory. The queries are few: their layers are here because the
// threads are. Compiled and called by native.py; float32 throughout.

#include <math.h>
#include <omp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define VECTORS 2
#define PANEL (VECTORS * LANES) // outputs of a product that are made together
// Rows of a product that are made together: with the vectors of a panel, as many sums as fit into the registers.
#define GROUP (LANES == 16 ? 12 : 6)
#define LINE 16 // floats in a line of the cache
#define BLOCK 72 // tokens that go through everything together: whole groups
#define BAN -1e38f // finite, because 0 * infinity is not 0; a score is lost in it
#define LEAST_LENGTH 1e-12f // the floor of torch's normalize

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t indices __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vector load(const float *from) { return *(const vector *)from; }
static inline void store(float *to, vector value) { *(vector *)to = value; }

// class Layer of native.py: the layer's parameters as PyTorch keeps them, its inputs and its outputs. The pointers to
// inputs and outputs move on from image to image; the shapes here are those of one image.
struct layer {
    int images, positions, height, width, dim, heads, queries; // positions: one for all images, or one for each
    bool release; // empty masks one by one; otherwise only when all queries of the image have one
    float query_norm_eps, key_norm_eps;
    const float *query_norm_weight, *query_norm_bias, *query_proj_weight, *query_proj_bias;
    const float *key_norm_weight, *key_norm_bias, *key_norm_mean, *key_norm_var;
    const float *key_conv_weight, *key_conv_bias, *key_proj_weight, *key_proj_bias;
    const float *proj_weight, *proj_bias, *alpha, *final_weight, *final_bias;
    const float *query, *query_embed; // [queries, dim]
    const float *source, *position;   // [height * width, dim]
    const uint8_t *banned;            // [height * width, queries]: 0 or 1; GCC makes no vectors of bool
    float *new_query, *target;        // [queries, dim]; one array for both, if the caller does not want the targets
    int64_t *index;                   // [heads, queries]; this and what follows is NULL when nobody wants it
    float *similarity;                // [heads, queries]
    float *key;                       // [height * width, dim], and room for a group
};

// What the threads share. Queries are padded to whole panels, and rows to whole groups.
struct shared {
    int padded_queries;
    float *scale, *shift;    // [dim]: the keys' norm
    float *taps;             // [9, dim]: the depthwise convolution
    float *weight;           // [dim / PANEL, dim, PANEL]: the keys' projection
    float *target;           // [heads, padded_queries / PANEL, dim / heads, PANEL]
    float *ban;              // [padded_queries]: what is added to the score of a banned token
    float *rows, *projected; // [padded_queries + GROUP, dim]: of the queries
    float *prototype;        // [queries, dim]
    float *best;             // [threads, heads, padded_queries]: each thread's highest scores
    int32_t *index;          // [threads, heads, padded_queries]: their tokens
    float *chosen;           // [threads, heads, padded_queries, dim / heads]: and those tokens' keys
};

// A panel's part of weight [outputs, dim]: [dim, PANEL].
static void pack(int dim, const float *weight, float *panel) {
    for (int c = 0; c < dim; c++)
        for (int i = 0; i < PANEL; i++) panel[c * PANEL + i] = weight[(size_t)i * dim + c];
}

// sum += rows [GROUP, length] times panel [length, vectors * LANES].
static inline __attribute__((always_inline)) void multiply(
    vector sum[GROUP][VECTORS], const float *rows, int stride, const float *panel, int vectors, int length) {
    for (int c = 0; c < length; c++) {
        vector factor[VECTORS];
        for (int v = 0; v < vectors; v++) factor[v] = load(panel + (c * vectors + v) * LANES);
#pragma GCC unroll 12
        for (int t = 0; t < GROUP; t++)
            for (int v = 0; v < vectors; v++) sum[t][v] += rows[(size_t)t * stride + c] * factor[v];
    }
}

// A panel of a linear layer: x [count, dim] to columns [0, PANEL) of y, both with whole groups of rows.
static void project(int dim, int count, const float *x, const float *panel, const float *bias, float *y) {
    for (int t = 0; t < count; t += GROUP) {
        vector sum[GROUP][VECTORS];
        for (int i = 0; i < GROUP; i++)
            for (int v = 0; v < VECTORS; v++) sum[i][v] = load(bias + v * LANES);
        multiply(sum, x + (size_t)t * dim, dim, panel, VECTORS, dim);
        for (int i = 0; i < GROUP; i++)
            for (int v = 0; v < VECTORS; v++) store(y + (size_t)(t + i) * dim + v * LANES, sum[i][v]);
    }
}

// A linear layer of the queries, shared out among the threads: s->rows to s->projected. panel is the thread's own.
static void project_queries(
    const struct layer *l, struct shared *s, const float *weight, const float *bias, float *panel) {
#pragma omp for
    for (int o = 0; o < l->dim; o += PANEL) {
        pack(l->dim, weight + (size_t)o * l->dim, panel);
        project(l->dim, l->queries, s->rows, panel, bias + o, s->projected + o);
    }
}

static float sum_of(vector x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

static inline float inverse_length(float squares) {
    const float length = sqrtf(squares);
    return 1 / (length < LEAST_LENGTH ? LEAST_LENGTH : length);
}

static void to_unit_length(int dim, float *x) {
    vector squares = {0};
    for (int c = 0; c < dim; c += LANES) squares += load(x + c) * load(x + c);
    const float factor = inverse_length(sum_of(squares));
    for (int c = 0; c < dim; c += LANES) store(x + c, load(x + c) * factor);
}

// Brings the keys' norm and convolution into the form that normalize_and_convolve wants.
static void prepare_keys(const struct layer *l, struct shared *s) {
#pragma omp for nowait
    for (int o = 0; o < l->dim; o += PANEL)
        pack(l->dim, l->key_proj_weight + (size_t)o * l->dim, s->weight + (size_t)o * l->dim);
#pragma omp for
    for (int c = 0; c < l->dim; c++) {
        s->scale[c] = l->key_norm_weight[c] / sqrtf(l->key_norm_var[c] + l->key_norm_eps);
        s->shift[c] = l->key_norm_bias[c] - l->key_norm_mean[c] * s->scale[c];
        for (int tap = 0; tap < 9; tap++) s->taps[tap * l->dim + c] = l->key_conv_weight[c * 9 + tap];
    }
}

// s->ban: nothing for queries that may look everywhere, because they are banned from all tokens.
static void set_bans(const struct layer *l, struct shared *s) {
    const int tokens = l->height * l->width;
    int empty = l->queries; // queries that are banned from all tokens so far
    for (int t = 0; t < tokens && empty; t++)
        for (int q = 0; q < l->queries; q++)
            if (s->ban[q] == 0 && !l->banned[(size_t)t * l->queries + q]) s->ban[q] = BAN, empty--;
    if (!l->release && empty < l->queries)
        for (int q = 0; q < l->queries; q++) s->ban[q] = BAN;
}

// What the queries look for: l->target, and the same in panels in s->target.
static void make_targets(const struct layer *l, struct shared *s, float *panel) {
    const int dim = l->dim, head_dim = dim / l->heads;
#pragma omp single nowait
    set_bans(l, s);
#pragma omp for
    for (int q = 0; q < l->queries; q++) {
        const float *query = l->query + (size_t)q * dim, *embed = l->query_embed + (size_t)q * dim;
        float *row = s->rows + (size_t)q * dim;
        vector sum = {0}, squares = {0};
        for (int c = 0; c < dim; c += LANES) sum += load(query + c) + load(embed + c);
        const float mean = sum_of(sum) / dim;
        for (int c = 0; c < dim; c += LANES) {
            const vector x = load(query + c) + load(embed + c) - mean;
            squares += x * x;
            store(row + c, x);
        }
        const float factor = 1 / sqrtf(sum_of(squares) / dim + l->query_norm_eps);
        for (int c = 0; c < dim; c += LANES)
            store(row + c, load(row + c) * factor * load(l->query_norm_weight + c) + load(l->query_norm_bias + c));
    }
    project_queries(l, s, l->query_proj_weight, l->query_proj_bias, panel);
#pragma omp for
    for (int q = 0; q < l->queries; q++) {
        float *target = s->projected + (size_t)q * dim;
        to_unit_length(dim, target);
        memcpy(l->target + (size_t)q * dim, target, sizeof(float) * dim);
        const int panel_start = q / PANEL * PANEL, width = panel_start + PANEL <= s->padded_queries ? PANEL : LANES;
        for (int h = 0; h < l->heads; h++) {
            float *to = s->target + (size_t)(h * s->padded_queries + panel_start) * head_dim + q % PANEL;
            for (int c = 0; c < head_dim; c++) to[c * width] = target[h * head_dim + c];
        }
    }
}

// The norm and the 3x3 convolution of a row's tokens [first, last), into output [last - first, dim]. Goes through the
// columns of inputs: each belongs to the outputs left of it, at it and right of it. What belongs to other outputs is
// added to scrap [dim], which nobody reads.
static void normalize_and_convolve(
    const struct layer *l, const struct shared *s, int row, int first, int last, float *output, float *scrap) {
    const int dim = l->dim;
    const float *scale = s->scale, *shift = s->shift, *taps = s->taps;
    for (int i = 0; i < last - first; i++) memcpy(output + (size_t)i * dim, l->key_conv_bias, sizeof(float) * dim);
    for (int col = first > 0 ? first - 1 : 0; col <= last && col < l->width; col++) {
        const float *source[3], *position[3];
        indices inside[3];
        for (int r = 0; r < 3; r++) {
            const int from = row + r - 1, here = from < 0 || from == l->height ? row : from;
            inside[r] = (indices){0} - (here == from); // outside there are zeros, and after the norm
            source[r] = l->source + ((size_t)here * l->width + col) * dim;
            position[r] = l->position + ((size_t)here * l->width + col) * dim;
        }
        float *at = output + (ptrdiff_t)(col - first) * dim;
        float *sum[3] = {
            col > first ? at - dim : scrap, col >= first && col < last ? at : scrap, col < last - 1 ? at + dim : scrap};
        for (int c = 0; c < dim; c += LANES) {
            vector x[3], total[3];
            // Only the row below was not read before: it is asked for four columns ahead.
            __builtin_prefetch(source[2] + 4 * dim + c), __builtin_prefetch(position[2] + 4 * dim + c);
            for (int r = 0; r < 3; r++) {
                x[r] = (load(source[r] + c) + load(position[r] + c)) * load(scale + c) + load(shift + c);
                x[r] = (vector)((indices)x[r] & inside[r]);
            }
            for (int i = 0; i < 3; i++) { // the output left of it has it under its right tap
                total[i] = load(sum[i] + c);
                for (int r = 0; r < 3; r++) total[i] += load(taps + (3 * r + 2 - i) * dim + c) * x[r];
            }
            for (int i = 0; i < 3; i++) store(sum[i] + c, total[i]);
        }
    }
}

// Compares the keys of tokens [first, first + count) with the targets of head h and of as many queries from q as lie in
// vectors. Only a higher score takes the place of another, so that of equal ones the first token stays.
static inline __attribute__((always_inline)) void compare_panel(
    const struct layer *l, const struct shared *s, int first, int count, const float *key, const float *bans,
    float *best, int32_t *index, int h, int q, int vectors) {
    const int dim = l->dim, head_dim = dim / l->heads;
    const size_t entry = (size_t)h * s->padded_queries + q;
    vector top[VECTORS];
    indices at[VECTORS];
    for (int v = 0; v < vectors; v++) {
        top[v] = load(best + entry + v * LANES);
        at[v] = *(indices *)(index + entry + v * LANES);
    }
    for (int t = 0; t < count; t += GROUP) {
        vector score[GROUP][VECTORS];
        for (int i = 0; i < GROUP; i++)
            for (int v = 0; v < vectors; v++)
                score[i][v] = load(bans + (size_t)(t + i) * s->padded_queries + q + v * LANES);
        multiply(score, key + (size_t)t * dim + h * head_dim, dim, s->target + entry * head_dim, vectors, head_dim);
        for (int i = 0; i < GROUP; i++)
            for (int v = 0; v < vectors; v++) {
                const indices higher = score[i][v] > top[v]; // all bits where it is
                at[v] = (at[v] & ~higher) | ((first + t + i) & higher);
                top[v] = (vector)(((indices)top[v] & ~higher) | ((indices)score[i][v] & higher));
            }
    }
    for (int v = 0; v < vectors; v++) {
        store(best + entry + v * LANES, top[v]);
        *(indices *)(index + entry + v * LANES) = at[v];
    }
}

static void compare(
    const struct layer *l, const struct shared *s, int first, int count, const float *key, const float *bans,
    float *best, int32_t *index) {
    for (int h = 0; h < l->heads; h++)
        for (int q = 0; q < s->padded_queries; q += PANEL)
            if (q + PANEL <= s->padded_queries)
                compare_panel(l, s, first, count, key, bans, best, index, h, q, VECTORS);
            else // half a panel
                compare_panel(l, s, first, count, key, bans, best, index, h, q, 1);
}

// The pass over the tokens: l->key, and thread me's best tokens of every head and query. own has room for a block of
// inputs, one of keys, one of bans, and the panel of a projection (none is computed here).
static void search(const struct layer *l, const struct shared *s, float *own, int me) {
    const int dim = l->dim, width = l->width, tokens = l->height * width;
    const int entries = l->heads * s->padded_queries, head_dim = dim / l->heads;
    float *x = own, *keys = x + BLOCK * dim, *bans = keys + BLOCK * dim, *scrap = bans + BLOCK * s->padded_queries;
    float *best = s->best + me * entries, *chosen = s->chosen + (size_t)me * entries * head_dim;
    int32_t *index = s->index + me * entries;
    memset(own, 0, (scrap + dim - own) * sizeof(float)); // why: see attend_image
    for (int e = 0; e < entries; e++) best[e] = -INFINITY;
    for (int i = 0; i < entries * head_dim; i++) chosen[i] = NAN; // NaN scores are never the best
#pragma omp for schedule(monotonic : dynamic) // of equal tokens, each thread has to meet the first one first
    for (int first = 0; first < tokens; first += BLOCK) {
        const int last = first + BLOCK < tokens ? first + BLOCK : tokens, count = last - first;
        float *key = l->key ? l->key + (size_t)first * dim : keys;
        for (int row = first / width; row * width < last; row++) {
            const int start = row * width, end = start + width;
            const int from = start > first ? start : first, to = end < last ? end : last;
            normalize_and_convolve(l, s, row, from - start, to - start, x + (size_t)(from - first) * dim, scrap);
        }
        for (int o = 0; o < dim; o += PANEL)
            project(dim, count, x, s->weight + (size_t)o * dim, l->key_proj_bias + o, key + o);
        for (int t = 0; t < count; t++) {
            to_unit_length(dim, key + (size_t)t * dim);
            const uint8_t *banned = l->banned + (size_t)(first + t) * l->queries;
            float *row = bans + (size_t)t * s->padded_queries;
            for (int q = 0; q < l->queries; q++) row[q] = banned[q] * s->ban[q];
        }
        if (count < BLOCK) // rows that fill up the last group belong to no token, and none of them is the best
            for (int i = count * s->padded_queries; i < BLOCK * s->padded_queries; i++) bans[i] = -INFINITY;
        compare(l, s, first, count, key, bans, best, index);
        for (int e = 0; e < entries; e++) {
            if (index[e] < first) continue; // ever fewer find a better one
            const float *found = key + (size_t)(index[e] - first) * dim + e / s->padded_queries * head_dim;
            memcpy(chosen + (size_t)e * head_dim, found, sizeof(float) * head_dim);
        }
    }
}

// The best of what the threads found, and the prototypes: the keys that a query's heads chose, side by side.
static void gather(const struct layer *l, struct shared *s, int threads) {
    const int head_dim = l->dim / l->heads, entries = l->heads * s->padded_queries;
#pragma omp for
    for (int q = 0; q < l->queries; q++)
        for (int h = 0; h < l->heads; h++) {
            const int first = h * s->padded_queries + q;
            int e = first;
            for (int i = first + entries; i < threads * entries; i += entries)
                if (s->best[i] > s->best[e] || (s->best[i] == s->best[e] && s->index[i] < s->index[e])) e = i;
            if (l->index) {
                l->index[h * l->queries + q] = s->index[e];
                l->similarity[h * l->queries + q] = s->best[e] <= BAN / 2 ? 0 : s->best[e]; // 0: all are banned
            }
            const float *chosen = s->chosen + (size_t)e * head_dim;
            memcpy(s->prototype + (size_t)q * l->dim + h * head_dim, chosen, sizeof(float) * head_dim);
        }
}

// What the queries learn from their prototypes: l->new_query.
static void update_queries(const struct layer *l, struct shared *s, float *panel) {
    const int dim = l->dim, size = l->queries * dim;
#pragma omp for
    for (int i = 0; i < size; i++) s->rows[i] = s->prototype[i] * l->target[i];
    project_queries(l, s, l->proj_weight, l->proj_bias, panel);
#pragma omp for
    for (int c = 0; c < dim; c += LANES) { // unit length over the queries
        vector squares = {0};
        for (int i = c; i < size; i += dim) squares += load(s->projected + i) * load(s->projected + i);
        vector factor = load(l->alpha + c);
        for (int i = 0; i < LANES; i++) factor[i] *= inverse_length(squares[i]);
        for (int i = c; i < size; i += dim)
            store(s->rows + i, load(s->projected + i) * factor + load(s->prototype + i));
    }
    project_queries(l, s, l->final_weight, l->final_bias, panel);
#pragma omp for
    for (int i = 0; i < size; i++) l->new_query[i] = l->query[i] + s->projected[i];
}

// Cuts count floats off the free memory, in whole lines of the cache.
static void *take(float **memory, size_t count) {
    float *piece = *memory;
    *memory += (count + LINE - 1) / LINE * LINE;
    return piece;
}

static size_t own_floats(const struct layer *l, int padded_queries) {
    return (size_t)(2 * BLOCK + PANEL) * l->dim + (size_t)BLOCK * padded_queries;
}

// What native.py has to know of this build.
size_t layer_size(void) { return sizeof(struct layer); }
int panel(void) { return PANEL; }
int group(void) { return GROUP; }

// How many floats attend works in.
size_t workspace(const struct layer *l, int threads) {
    const int padded = (l->queries + LANES - 1) / LANES * LANES;
    const size_t dim = l->dim, rows = (padded + GROUP) * dim, found = (2 * l->heads + dim) * padded;
    return (11 + dim + padded) * dim + padded + 3 * rows + threads * (own_floats(l, padded) + found) + 12 * LINE;
}

static void attend_image(const struct layer *l, int threads, float *memory) {
    const int padded = (l->queries + LANES - 1) / LANES * LANES, entries = l->heads * padded;
    const size_t dim = l->dim, rows = (padded + GROUP) * dim, own = own_floats(l, padded);
    struct shared s;
    s.padded_queries = padded;
    s.scale = take(&memory, dim), s.shift = take(&memory, dim), s.taps = take(&memory, 9 * dim);
    s.weight = take(&memory, dim * dim), s.target = take(&memory, padded * dim), s.ban = take(&memory, padded);
    s.rows = take(&memory, rows), s.projected = take(&memory, rows), s.prototype = take(&memory, rows);
    s.best = take(&memory, threads * entries), s.index = take(&memory, threads * entries);
    s.chosen = take(&memory, threads * padded * dim);
    // The rest is written before it is read, but for what lies beyond the last token or query. That is computed along
    // and has to be zeros: subnormal numbers, which may happen to lie there, made an Intel CPU take six times as long.
    memset(s.ban, 0, padded * sizeof(float));
    memset(s.index, 0, threads * entries * sizeof(int32_t));
    memset(s.target, 0, padded * dim * sizeof(float));
    memset(s.rows + l->queries * dim, 0, (rows - l->queries * dim) * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num();
        float *mine = memory + me * own, *panel = mine + own - PANEL * dim;
        prepare_keys(l, &s);
        make_targets(l, &s, panel);
        search(l, &s, mine, me);
        gather(l, &s, omp_get_num_threads()); // OpenMP may give fewer threads than it was asked for
        update_queries(l, &s, panel);
    }
}

// memory: workspace(batch, threads) floats, from the beginning of a line of the cache.
void attend(const struct layer *batch, int threads, float *memory) {
    struct layer l = *batch;
    const size_t tokens = (size_t)l.height * l.width, map = tokens * l.dim, queries = (size_t)l.queries * l.dim;
    for (int i = 0; i < l.images; i++) {
        attend_image(&l, threads, memory);
        l.query += queries, l.source += map, l.banned += tokens * l.queries;
        if (l.positions > 1) l.position += map;
        l.new_query += queries, l.target += queries;
        if (l.index) l.index += l.heads * l.queries, l.similarity += l.heads * l.queries, l.key += map;
    }
}
