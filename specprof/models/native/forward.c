/* The forward pass of a small model over a few tokens, without anything between its operations.

   What a Python program pays for a token is mostly dispatch: some 13 calls into PyTorch a layer, each
   of a few microseconds, around products that take as long. Here one call runs all layers in one
   parallel region. Weights lie packed, in 16 bits where that loses nothing of them, and are widened in
   registers: a product of few tokens is bound by how many bytes of weights it reads.

   Every number of a token is summed in an order that depends on neither the other tokens of the pass
   nor the threads: a token's logits are the same, to the last bit, alone and in a pass of many.

   No headers of Python or PyTorch: compiled by any C compiler with vector extensions (GCC, Clang), in
   two seconds. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define REGISTERS 24 /* of 32, for sums; the rest hold weights and inputs */
#elif defined(__AVX__)
#define LANES 8
#define REGISTERS 10
#else
#define LANES 4
#define REGISTERS 20
#endif

#define MAX_WIDTH 16
#define MAX_PART 8 /* tokens multiplied at once */
#define TILE 8     /* query rows over one reading of the keys */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t u16vec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t u32vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

/* A matrix [rows, cols] in blocks of LANES rows, each [cols, LANES]: the weights of one input to LANES
   outputs lie together. rows is a multiple of LANES. */
typedef struct {
    int32_t rows, cols, kind;
    const void *packed;
    const float *bias; /* [rows] or NULL */
} Matrix;

typedef struct {
    const float *norm1, *norm1_bias, *norm2, *norm2_bias, *q_norm, *k_norm; /* NULL where there is none */
    Matrix qkv, out, up, down; /* up: gate and up in one for Llama */
    int32_t window;            /* 0: none */
} Layer;

typedef struct {
    int32_t gpt2, num_layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, context;
    float eps, scale;
    const float *embedding; /* [vocab, hidden] */
    const float *positions; /* GPT-2: [context, hidden] */
    const float *norm, *norm_bias;
    const Layer *layers;
    Matrix head;
    float *x, *qkv, *attended, *inner; /* of a pass: [MAX_WIDTH, ...] */
    float *scratch;                    /* of each thread: [MAX_WIDTH, hidden], then [TILE, scores_floats] */
    int64_t scores_floats;             /* places in the slab, up to a multiple of LANES */
    int32_t num_threads;
} Model;

static inline vec broadcast(float value) { return value - (vec){0}; }
static inline vec choose(ivec where, vec a, vec b) { return (vec)((where & (ivec)a) | (~where & (ivec)b)); }

static inline float sum(vec v) {
    float total = 0;
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    total = v[0];
    return total;
}

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }

static inline vec weights_at(const void *packed, int64_t index, int kind) {
    if (kind == FLOAT32) return load((const float *)packed + index);
    const uint16_t *p = (const uint16_t *)packed + index;
    if (kind == BFLOAT16) return (vec)(__builtin_convertvector(*(const u16vec *)p, u32vec) << 16);
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#elif defined(__ARM_FP16_FORMAT_IEEE)
    typedef __fp16 hvec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
    return __builtin_convertvector(*(const hvec *)p, vec);
#else
    return (vec){0}; /* not reached: see native_reads_float16 */
#endif
}

int32_t native_lanes(void) { return LANES; }
int32_t native_max_width(void) { return MAX_WIDTH; }
int32_t native_tile(void) { return TILE; }

int32_t native_threaded(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

int32_t native_reads_float16(void) {
#if defined(__AVX512F__) || defined(__F16C__) || defined(__ARM_FP16_FORMAT_IEEE)
    return 1;
#else
    return 0;
#endif
}

/* exp(x) to 2 units in the last place, for x <= 0 (Cephes' expf). */
static inline vec exponential(vec x) {
    const vec least = broadcast(-87.3f);
    x = choose(x < least, least, x);
    vec n = x * 1.44269504088896341f;
    n = __builtin_convertvector(__builtin_convertvector(n - 0.5f, ivec), vec); /* rounded, for n <= 0 */
    vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vec y = broadcast(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return y * (vec)power;
}

/* 1 / (1 + exp(-x)) without overflow: of -|x|, and mirrored. */
static inline vec sigmoid(vec x) {
    vec e = exponential(choose(x > 0, -x, x));
    vec s = e / (1.0f + e);
    return choose(x > 0, 1.0f - s, s);
}

static inline vec gelu_tanh(vec x) {
    /* 0.5 x (1 + tanh(y)) = x sigmoid(2 y) */
    vec y = 1.5957691216057308f * (x + 0.044715f * x * x * x);
    return x * sigmoid(y);
}

/* y[t, rows first .. first + groups LANES) = W x[t] + bias, for part tokens; constants after inlining */
static inline __attribute__((always_inline)) void block(
    const Matrix *w, int kind, int first, int groups, int part, const float *x, int64_t ldx, float *y, int64_t ldy) {
    const int cols = w->cols;
    vec sums[REGISTERS];
    for (int g = 0; g < groups; g++)
        for (int t = 0; t < part; t++)
            sums[g * part + t] = w->bias ? load(w->bias + (first + g) * LANES) : broadcast(0);
    const int64_t base = (int64_t)first * LANES * cols, step = (int64_t)LANES * cols;
    for (int i = 0; i < cols; i++) {
        vec row[8];
        for (int g = 0; g < groups; g++) row[g] = weights_at(w->packed, base + g * step + (int64_t)i * LANES, kind);
        for (int t = 0; t < part; t++) {
            vec input = broadcast(x[t * ldx + i]);
            for (int g = 0; g < groups; g++) sums[g * part + t] += row[g] * input;
        }
    }
    for (int g = 0; g < groups; g++)
        for (int t = 0; t < part; t++) store(y + t * ldy + (first + g) * LANES, sums[g * part + t]);
}

static inline __attribute__((always_inline)) int at_once(int part) {
    int groups = REGISTERS / part;
    return groups > 4 ? (part == 1 && groups >= 8 ? 8 : 4) : groups;
}

static inline __attribute__((always_inline)) void blocks(
    const Matrix *w, int kind, int begin, int end, int part, const float *x, int64_t ldx, float *y, int64_t ldy) {
    const int groups = at_once(part);
    int g = begin;
    for (; g + groups <= end; g += groups) block(w, kind, g, groups, part, x, ldx, y, ldy);
    if (groups > 2)
        for (; g + 2 <= end; g += 2) block(w, kind, g, 2, part, x, ldx, y, ldy);
    for (; g < end; g++) block(w, kind, g, 1, part, x, ldx, y, ldy);
}

#define OF_WIDTH(part)                                                                                               \
    static __attribute__((noinline)) void blocks_##part(                                                             \
        const Matrix *w, int begin, int end, const float *x, int64_t ldx, float *y, int64_t ldy) {                    \
        if (w->kind == FLOAT16) blocks(w, FLOAT16, begin, end, part, x, ldx, y, ldy);                                 \
        else if (w->kind == BFLOAT16) blocks(w, BFLOAT16, begin, end, part, x, ldx, y, ldy);                          \
        else blocks(w, FLOAT32, begin, end, part, x, ldx, y, ldy);                                                   \
    }
OF_WIDTH(1)
OF_WIDTH(2)
OF_WIDTH(3)
OF_WIDTH(4)
OF_WIDTH(5)
OF_WIDTH(6)
OF_WIDTH(7)
OF_WIDTH(8)

typedef void (*Blocks)(const Matrix *, int, int, const float *, int64_t, float *, int64_t);
static const Blocks by_width[MAX_PART + 1] = {0, blocks_1, blocks_2, blocks_3, blocks_4, blocks_5, blocks_6, blocks_7, blocks_8};

/* This thread's share of y[t] = W x[t] + bias. Rows are shared out in blocks, tokens in parts of equal size. */
static void product(
    const Matrix *w, const float *x, int64_t ldx, int width, float *y, int64_t ldy, int begin, int end) {
    const int parts = (width + MAX_PART - 1) / MAX_PART;
    const int few = (end - begin) > 8 && parts > 1 ? 8 : end - begin; /* a piece stays in cache for the next part */
    for (int piece = begin; piece < end; piece += few) {
        const int last = piece + few < end ? piece + few : end;
        for (int p = 0, t = 0; p < parts; p++) {
            const int part = (width - t) / (parts - p);
            by_width[part](w, piece, last, x + t * ldx, ldx, y + t * ldy, ldy);
            t += part;
        }
    }
}

static void normed(const Model *m, const float *weight, const float *bias, const float *x, float *y, int n) {
    vec squares = broadcast(0), sums = broadcast(0);
    int i = 0;
    float mean = 0, rest = 0;
    if (m->gpt2) {
        for (; i + LANES <= n; i += LANES) sums += load(x + i);
        for (; i < n; i++) rest += x[i];
        mean = (sum(sums) + rest) / n;
    }
    rest = 0;
    for (i = 0; i + LANES <= n; i += LANES) {
        vec d = load(x + i) - mean;
        squares += d * d;
    }
    for (; i < n; i++) rest += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf((sum(squares) + rest) / n + m->eps);
    if (bias)
        for (i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    else
        for (i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * weight[i];
}

/* Rotates pairs (i, i + dim / 2); the tables hold cos twice and sin with rotate_half's sign. */
static void rotate(float *restrict x, const float *cos, const float *sin, int dim) {
    const int half = dim / 2;
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] + b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* (a0 + a1, a2 + a3, ..., b0 + b1, ...) */
#if LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#else
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#endif
static inline vec pairs(vec a, vec b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, EVEN) + __builtin_shufflevector(a, b, ODD);
#else
    return __builtin_shuffle(a, b, (ivec){EVEN}) + __builtin_shuffle(a, b, (ivec){ODD});
#endif
}

/* The sum of each of LANES vectors, in one. */
static inline vec sums_of(vec *p) {
    for (int n = LANES; n > 1; n /= 2)
        for (int i = 0; i < n; i += 2) p[i / 2] = pairs(p[i], p[i + 1]);
    return p[0];
}

static inline __attribute__((always_inline)) vec dots(const float *q, const float *keys, int count, int dim) {
    vec p[LANES];
    for (int j = 0; j < LANES; j++) {
        p[j] = broadcast(0);
        if (j < count)
            for (int d = 0; d < dim; d += LANES) p[j] += load(q + d) * load(keys + (int64_t)j * dim + d);
    }
    return sums_of(p);
}

#define VALUES 32 /* values a row takes in before the next row does */

typedef struct {
    const float *q;
    float *scores, *y;
    int from, to; /* keys it sees */
} Row;

static inline ivec lane_numbers(void) {
    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane;
}

/* Which of the keys j, j + 1, ... it does. */
static inline ivec seen_by(const Row *row, int j) {
    const ivec place = lane_numbers() + j;
    return (place < row->to) & (place >= row->from);
}

/* Softmax(q k / sqrt(d)) v of up to TILE rows over the keys and values of one head. A key's place among the lanes is
   its position's, whatever the other rows see. dim is a constant after inlining. */
static inline __attribute__((always_inline)) void attend(
    Row *rows, int num_rows, const float *keys, const float *values, int dim, float scale) {
    int from = rows[0].from, to = rows[0].to;
    for (int r = 1; r < num_rows; r++) {
        from = rows[r].from < from ? rows[r].from : from;
        to = rows[r].to > to ? rows[r].to : to;
    }
    from -= from % LANES;
    for (int j = from; j < to; j += LANES) {
        const float *k = keys + (int64_t)j * dim;
        for (int r = 0; r < num_rows; r++) {
            vec s = to - j >= LANES ? dots(rows[r].q, k, LANES, dim) : dots(rows[r].q, k, to - j, dim);
            store(rows[r].scores + j, s * scale);
        }
    }
    for (int r = 0; r < num_rows; r++) {
        const int end = rows[r].to;
        float *scores = rows[r].scores;
        vec most = broadcast(-INFINITY), total = broadcast(0);
        for (int j = from; j < end; j += LANES) {
            vec s = choose(seen_by(rows + r, j), load(scores + j), broadcast(-INFINITY));
            store(scores + j, s);
            most = choose(s > most, s, most);
        }
        float highest = most[0];
        for (int i = 1; i < LANES; i++) highest = most[i] > highest ? most[i] : highest;
        for (int j = from; j < end; j += LANES) {
            vec s = load(scores + j);
            vec e = choose(seen_by(rows + r, j), exponential(s - highest), broadcast(0));
            total += e;
            store(scores + j, e);
        }
        const float inverse = 1.0f / sum(total);
        for (int j = from; j < end; j += LANES) store(scores + j, load(scores + j) * inverse);
        for (int d = 0; d < dim; d += LANES) store(rows[r].y + d, broadcast(0));
    }
    for (int piece = from; piece < to; piece += VALUES)
        for (int r = 0; r < num_rows; r++) {
            const int end = piece + VALUES < rows[r].to ? piece + VALUES : rows[r].to;
            for (int d = 0; d < dim; d += 4 * LANES) {
                const int n = dim - d < 4 * LANES ? (dim - d) / LANES : 4;
                vec y[4];
                for (int c = 0; c < 4; c++)
                    if (c < n) y[c] = load(rows[r].y + d + c * LANES);
                for (int j = piece; j < end; j++) {
                    const float *v = values + (int64_t)j * dim + d;
                    for (int c = 0; c < 4; c++)
                        if (c < n) y[c] += rows[r].scores[j] * load(v + c * LANES);
                }
                for (int c = 0; c < 4; c++)
                    if (c < n) store(rows[r].y + d + c * LANES, y[c]);
            }
        }
}

static __attribute__((noinline)) void attend_64(Row *r, int n, const float *k, const float *v, float scale) {
    attend(r, n, k, v, 64, scale);
}
static __attribute__((noinline)) void attend_128(Row *r, int n, const float *k, const float *v, float scale) {
    attend(r, n, k, v, 128, scale);
}
static __attribute__((noinline)) void attend_any(
    Row *r, int n, const float *k, const float *v, int dim, float scale) {
    attend(r, n, k, v, dim, scale);
}

static void share(int64_t total, int thread, int threads, int *begin, int *end) {
    *begin = (int)(total * thread / threads);
    *end = (int)(total * (thread + 1) / threads);
}

/* A pass of the model, from one thread of a team: all of them call it together, and leave it together.

   Runs `width` tokens at positions start .. start + width - 1 through layers first .. last - 1.

   ids: tokens to embed, or NULL where m->x holds their states already.
   slab: [2, num_layers, kv_heads, capacity, head_dim], keys and values.
   cos, sin: rows of the tables for `start` on, [width, head_dim]; NULL for GPT-2.
   logits: [num_logits, rows of the head] after the last num_logits tokens, or NULL.
   The states after the last layer are left in m->x.

   Never inlined: there is one copy of it, so one way to round. */
static __attribute__((noinline)) void pass(
    const Model *m, int thread, int threads, const int64_t *ids, int width, int start, int first, int last, float *slab,
    int64_t capacity, const float *cos, const float *sin, float *logits, int num_logits) {
    const int hidden = m->hidden, dim = m->head_dim, heads = m->heads, kv = m->kv_heads, inner = m->intermediate;
    const int group = heads / kv;
    const int64_t wide = (int64_t)(heads + 2 * kv) * dim, per_head = capacity * dim, per_layer = kv * per_head;
    float *const keys = slab, *const values = slab + m->num_layers * per_layer;
    const int up = m->gpt2 ? inner : 2 * inner;

    float *const own = m->scratch + thread * ((int64_t)MAX_WIDTH * hidden + TILE * m->scores_floats);
    float *const scores = own + (int64_t)MAX_WIDTH * hidden;
    int begin, end;

    if (ids) {
        share(hidden, thread, threads, &begin, &end);
        for (int t = 0; t < width; t++)
            for (int i = begin; i < end; i++)
                m->x[t * hidden + i] = m->embedding[ids[t] * hidden + i]
                                       + (m->gpt2 ? m->positions[(int64_t)(start + t) * hidden + i] : 0);
#pragma omp barrier
    }
    for (int l = first; l < last; l++) {
        const Layer *layer = m->layers + l;

        for (int t = 0; t < width; t++)
            normed(m, layer->norm1, layer->norm1_bias, m->x + t * hidden, own + t * hidden, hidden);
        share(layer->qkv.rows / LANES, thread, threads, &begin, &end);
        product(&layer->qkv, own, hidden, width, m->qkv, wide, begin, end);
#pragma omp barrier
        share((int64_t)kv * width, thread, threads, &begin, &end);
        for (int i = begin; i < end; i++) {
            const int h = i / width, t = i % width;
            float *k = m->qkv + t * wide + (heads + h) * dim;
            const int64_t place = l * per_layer + h * per_head + (int64_t)(start + t) * dim;
            if (layer->k_norm) normed(m, layer->k_norm, 0, k, k, dim);
            if (cos) rotate(k, cos + t * dim, sin + t * dim, dim);
            memcpy(keys + place, k, dim * sizeof(float));
            memcpy(values + place, k + kv * dim, dim * sizeof(float));
        }
#pragma omp barrier
        /* Rows of one head of keys are neighbours, so that a thread reads few heads, and each once a tile. */
        share((int64_t)heads * width, thread, threads, &begin, &end);
        for (int i = begin; i < end;) {
            const int h = i / (width * group), stop = end < (h + 1) * width * group ? end : (h + 1) * width * group;
            Row rows[TILE];
            int n = 0;
            for (; i < stop && n < TILE; i++, n++) {
                const int t = i % (width * group) / group, head = h * group + i % group, seen = start + t + 1;
                float *q = m->qkv + t * wide + head * dim;
                if (layer->q_norm) normed(m, layer->q_norm, 0, q, q, dim);
                if (cos) rotate(q, cos + t * dim, sin + t * dim, dim);
                rows[n].q = q;
                rows[n].scores = scores + n * m->scores_floats;
                rows[n].y = m->attended + (int64_t)t * heads * dim + head * dim;
                rows[n].from = layer->window && seen > layer->window ? seen - layer->window : 0;
                rows[n].to = seen;
            }
            const float *k = keys + l * per_layer + h * per_head, *v = values + l * per_layer + h * per_head;
            if (dim == 64) attend_64(rows, n, k, v, m->scale);
            else if (dim == 128) attend_128(rows, n, k, v, m->scale);
            else attend_any(rows, n, k, v, dim, m->scale);
        }
#pragma omp barrier
        share(layer->out.rows / LANES, thread, threads, &begin, &end);
        product(&layer->out, m->attended, (int64_t)heads * dim, width, own, hidden, begin, end);
        for (int t = 0; t < width; t++)
            for (int i = begin * LANES; i < end * LANES; i++) m->x[t * hidden + i] += own[t * hidden + i];
#pragma omp barrier
        for (int t = 0; t < width; t++)
            normed(m, layer->norm2, layer->norm2_bias, m->x + t * hidden, own + t * hidden, hidden);
        /* The gate's and the up projection's rows of one output are the same thread's. */
        share(inner / LANES, thread, threads, &begin, &end);
        product(&layer->up, own, hidden, width, m->inner, up, begin, end);
        if (!m->gpt2) product(&layer->up, own, hidden, width, m->inner, up, begin + inner / LANES, end + inner / LANES);
        for (int t = 0; t < width; t++)
            for (int i = begin * LANES; i < end * LANES; i += LANES) {
                float *gate = m->inner + (int64_t)t * up + i;
                vec g = load(gate);
                if (m->gpt2) store(gate, gelu_tanh(g));
                else store(gate, g * sigmoid(g) * load(gate + inner));
            }
#pragma omp barrier
        share(layer->down.rows / LANES, thread, threads, &begin, &end);
        product(&layer->down, m->inner, up, width, own, hidden, begin, end);
        for (int t = 0; t < width; t++)
            for (int i = begin * LANES; i < end * LANES; i++) m->x[t * hidden + i] += own[t * hidden + i];
#pragma omp barrier
    }
    if (logits) {
        const int skipped = width - num_logits;
        for (int t = 0; t < num_logits; t++)
            normed(m, m->norm, m->norm_bias, m->x + (t + skipped) * hidden, own + t * hidden, hidden);
        share(m->head.rows / LANES, thread, threads, &begin, &end);
        product(&m->head, own, hidden, num_logits, logits, m->head.rows, begin, end);
    }
}

#ifdef _OPENMP
#define THREAD omp_get_thread_num()
#define THREADS omp_get_num_threads()
#else
#define THREAD 0
#define THREADS 1
#endif

static int known(const Model *m, const int64_t *ids, int width) {
    for (int i = 0; i < width; i++)
        if (ids[i] < 0 || ids[i] >= m->vocab) return 0;
    return 1;
}

enum { DONE = 0, UNKNOWN_TOKEN = 1, NO_ROOM = 2 };

/* Whether what a call was asked for lies within the tables and the slab. */
static int32_t checked(const Model *m, const int64_t *ids, int width, int start, int end, const float *slab, int64_t capacity) {
    if (width < 1 || width > MAX_WIDTH || start < 0) return NO_ROOM;
    if (slab && (end > capacity || end > m->context)) return NO_ROOM;
    return ids && !known(m, ids, width) ? UNKNOWN_TOKEN : DONE;
}

/* One pass; see there. Returns DONE, or why nothing was done. */
int32_t native_forward(
    const Model *m, const int64_t *ids, int32_t width, int32_t start, int32_t first, int32_t last, float *slab,
    int64_t capacity, const float *cos, const float *sin, float *logits, int32_t num_logits) {
    const int32_t problem = checked(m, ids, width, start, start + width, slab, capacity);
    if (problem) return problem;
#pragma omp parallel num_threads(m->num_threads)
    pass(m, THREAD, THREADS, ids, width, start, first, last, slab, capacity, cos, sin, logits, num_logits);
    return 0;
}

/* The first of the largest; the first that is no number where there is one, as in PyTorch. */
static int64_t largest(const float *x, int n) {
    vec most = broadcast(-INFINITY);
    ivec odd = {0};
    int i = 0, odds = 0;
    for (; i + LANES <= n; i += LANES) {
        vec v = load(x + i);
        most = choose(v > most, v, most);
        odd |= v != v;
    }
    float highest = most[0];
    for (int j = 0; j < LANES; j++) {
        highest = most[j] > highest ? most[j] : highest;
        odds |= odd[j];
    }
    for (; i < n; i++) {
        highest = x[i] > highest ? x[i] : highest;
        odds |= x[i] != x[i];
    }
    for (i = 0; i < n; i++)
        if (odds ? x[i] != x[i] : x[i] == highest) return i;
    return 0;
}

/* Softmax(logits / temperature): no number anywhere where one of the logits is none, as in PyTorch. */
static void soften(const float *logits, int n, float temperature, float *law) {
    const int whole = n - n % LANES, rest = n - whole;
    float end[LANES]; /* the last logits, where they don't fill a vector; over a temperature that may be infinite */
    for (int j = 0; j < LANES; j++) end[j] = j < rest ? logits[whole + j] / temperature : -INFINITY;

    vec most = load(end);
    for (int i = 0; i < whole; i += LANES) {
        vec v = load(logits + i) / temperature;
        most = choose(v > most, v, most);
    }
    float highest = most[0];
    for (int j = 1; j < LANES; j++) highest = most[j] > highest ? most[j] : highest;

    vec total = broadcast(0);
    for (int i = 0; i < n; i += LANES) {
        vec x = load(end);
        if (i < whole) x = load(logits + i) / temperature;
        x = x - highest;
        vec e = choose(x < -87.3f, broadcast(0), exponential(x)); /* what exponential() takes no further */
        total += e;
        if (i < whole) store(law + i, e);
        else store(end, e);
    }
    const float inverse = 1.0f / sum(total);
    for (int i = 0; i < whole; i += LANES) store(law + i, load(law + i) * inverse);
    for (int j = 0; j < rest; j++) law[whole + j] = end[j] * inverse;
}

/* The token at which a share `uniform` of the law's mass is passed; in PyTorch decoding/sampling.py does the same. */
static int64_t drawn(const float *law, int n, double uniform) {
    double total = 0, passed = 0;
    for (int i = 0; i < n; i++) total += law[i];
    for (int i = 0; i < n; i++) {
        passed += law[i];
        if (passed > uniform * total) return i;
    }
    return n - 1; /* of a law that has no numbers */
}

/* Takes `width` tokens in, chooses one to follow, takes that in, and so on: `steps` choices, the last of which is not
   taken in. Returns as native_forward does.

   logits: room for [1, rows of the head].
   laws: [steps, vocab], those that the choices are made from, or NULL.
   uniforms: [steps], what to draw each choice from its law by; NULL for the likeliest.
   scores: [steps], the probability of each choice that was drawn, the logit of each that was not. */
int32_t native_draft(
    const Model *m, const int64_t *ids, int32_t width, int32_t start, float *slab, int64_t capacity, const float *cos,
    const float *sin, float *logits, int32_t steps, int64_t *chosen, float *scores, float temperature,
    const double *uniforms, float *laws) {
    const int32_t problem = checked(m, ids, width, start, start + width + steps - 1, slab, capacity);
    if (problem) return problem;
#pragma omp parallel num_threads(m->num_threads)
    for (int i = 0; i < steps; i++) {
        const int before = i ? width + i - 1 : 0; /* tokens taken in by earlier steps */
        const int64_t turn = (int64_t)before * m->head_dim;
        pass(m, THREAD, THREADS, i ? chosen + i - 1 : ids, i ? 1 : width, start + before, 0, m->num_layers, slab,
             capacity, cos ? cos + turn : 0, sin ? sin + turn : 0, logits, 1);
#pragma omp barrier
#pragma omp master
        {
            float *law = laws ? laws + (int64_t)i * m->vocab : 0;
            if (law) soften(logits, m->vocab, temperature, law);
            chosen[i] = uniforms ? drawn(law, m->vocab, uniforms[i]) : largest(logits, m->vocab);
            scores[i] = (uniforms ? law : logits)[chosen[i]];
        }
#pragma omp barrier
    }
    return 0;
}
