// Attention for sequences as short as a vision transformer's: a head's keys and values stay in the
// cache of one core, and so do the weights of kRows queries, which are never written out.

// eˣ for x ≤ 0, within 2 ulp; e⁻⁸⁷ below that. A NaN stays one.
SDSGSM_HD Vec exp_of(Vec x) {
  typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
  const Vec least = Vec{} - 87.0f, shift = Vec{} + 0x1.8p23f;
  x = x < least ? least : x;
  const Vec shifted = x * 0x1.715476p0f + shift, n = shifted - shift;  // rounded: n of 2ⁿ
  const Vec f = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;          // x − n·ln 2
  Vec p = f * (1.0f / 5040) + 1.0f / 720;
  p = p * f + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  return p * Vec((Bits(shifted) + 127) << 23);
}

typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));

// Four of the eight values of two quads.
template <int i, int j, int k, int l>
SDSGSM_HD Quad picked(Quad a, Quad b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, i, j, k, l);
#else
  typedef int32_t Order __attribute__((vector_size(16)));
  return __builtin_shuffle(a, b, Order{i, j, k, l});
#endif
}

// Four rows of `size` values become columns of a matrix whose rows are `apart`.
inline void transpose(const float* const* rows, int64_t size, float* to, int64_t apart) {
  const auto read = [&](int k, int64_t c) { return *reinterpret_cast<const Quad*>(rows[k] + c); };
  int64_t c = 0;
  for (; c + 4 <= size; c += 4) {
    const auto write = [&](Quad q) { *reinterpret_cast<Quad*>(to) = q, to += apart; };
    const Quad a = read(0, c), b = read(1, c), d = read(2, c), e = read(3, c);
    const Quad ab = picked<0, 4, 1, 5>(a, b), de = picked<0, 4, 1, 5>(d, e);
    write(picked<0, 1, 4, 5>(ab, de));
    write(picked<2, 3, 6, 7>(ab, de));
    const Quad ba = picked<2, 6, 3, 7>(a, b), ed = picked<2, 6, 3, 7>(d, e);
    write(picked<0, 1, 4, 5>(ba, ed));
    write(picked<2, 3, 6, 7>(ba, ed));
  }
  for (; c < size; ++c, to += apart)
    for (int i = 0; i < 4; ++i) to[i] = rows[i][c];
}

template <class T>
class Attention {
 public:
  explicit Attention(const AttentionCall& c) : call(c) {
    columns = (call.keys + kLanes - 1) / kLanes * kLanes;
    row = columns + kLanes;
    across = (call.width + kLanes - 1) / kLanes * kLanes;
    in_place = std::is_same_v<T, float> && across == call.width;
  }

  void run(int threads) const {
    const int64_t heads = call.batch * call.heads;
    const int team = workers(threads, heads, heads * call.queries * call.keys);
    const int64_t values = (call.size + kRows) * row + (call.keys + kRows) * across +
                           (kRows + 4) * call.size;
    const int64_t floats = (values * 4 + kLine - 1) / kLine * kLine / 4;
    auto* scratch =
        static_cast<float*>(::operator new(size_t(team * floats * 4), std::align_val_t(kLine)));
    parallel_for(team, team, [&](int64_t k) {
      for (int64_t h = heads * k / team; h < heads * (k + 1) / team; ++h)
        head(h / call.heads, h % call.heads, scratch + k * floats);
    });
    ::operator delete(scratch, std::align_val_t(kLine));
  }

 private:
  const AttentionCall& call;
  // Numbers that are added one by one: sums of more are sums of sums. Where tokens are alike each
  // addition rounds the same way, and the errors of a long sum grow with its length.
  static constexpr int64_t kSummed = 128;

  int64_t columns;  // keys, filled up to whole vectors
  int64_t row;      // from one row of keys or weights to the next; a power of two shares cache sets
  int64_t across;   // a value's, filled up
  bool in_place;    // whether values can be read where they are

  static const T* token(const Tokens& of, int64_t image, int64_t head, int64_t at) {
    return static_cast<const T*>(of.data) + image * of.batch + head * of.head + at * of.token;
  }

  void head(int64_t image, int64_t head, float* scratch) const {
    float* keys = scratch;                           // (size, row)
    float* weights = keys + call.size * row;         // (kRows, row)
    float* sums = weights + kRows * row;             // (kRows, across)
    float* queries = sums + kRows * across;          // (kRows, size)
    float* wide = queries + kRows * call.size;       // (4, size)
    float* copies = wide + 4 * call.size;            // (keys, across)
    transpose_keys(image, head, keys, wide);
    const float* values = copies;
    int64_t apart = across;
    if constexpr (std::is_same_v<T, float>)
      if (in_place) values = token(call.value, image, head, 0), apart = call.value.token;
    if (!in_place) copy_values(image, head, copies);
    for (int64_t first = 0; first < call.queries; first += kRows) {
      const int64_t left = call.queries - first, rows = left < kRows ? left : kRows;
      for (int64_t r = 0; r < kRows; ++r) {  // the last query fills up the last rows
        const T* from = token(call.query, image, head, first + (r < rows ? r : rows - 1));
        for (int64_t c = 0; c < call.size; ++c)
          queries[r * call.size + c] = load(from + c) * call.scale;
      }
      multiply(queries, call.size, call.size, keys, row, columns, weights, row);
      float shares[kRows];
      for (int64_t r = 0; r < rows; ++r) shares[r] = 1 / exponentials(weights + r * row);
      multiply(weights, row, call.keys, values, apart, across, sums, across);
      for (int64_t r = 0; r < rows; ++r) {
        auto* to = static_cast<T*>(call.out) +
                   ((image * call.queries + first + r) * call.heads + head) * call.width;
        for (int64_t c = 0; c < call.width; ++c) store(to + c, sums[r * across + c] * shares[r]);
      }
    }
  }

  // The keys of a head as columns; the last one fills up its vector's four.
  void transpose_keys(int64_t image, int64_t head, float* keys, float* wide) const {
    for (int64_t c = 0; c < call.size; ++c) put(keys + c * row + columns - kLanes, Vec{});
    for (int64_t i = 0; i < call.keys; i += 4) {
      const float* rows[4];
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t at = i + k < call.keys ? i + k : call.keys - 1;
        const T* from = token(call.key, image, head, at);
        if constexpr (std::is_same_v<T, float>) {
          rows[k] = from;
        } else {
          rows[k] = wide + k * call.size;
          for (int64_t c = 0; c < call.size; ++c) wide[k * call.size + c] = load(from + c);
        }
      }
      transpose(rows, call.size, keys + i, row);
    }
  }

  void copy_values(int64_t image, int64_t head, float* copies) const {
    for (int64_t i = 0; i < call.keys; ++i, copies += across) {
      const T* from = token(call.value, image, head, i);
      for (int64_t c = 0; c < call.width; ++c) copies[c] = load(from + c);
      for (int64_t c = call.width; c < across; ++c) copies[c] = 0;
    }
  }

  // Turns the products of a query into its weights, but for their sum, which is returned.
  float exponentials(float* row) const {
    for (int64_t i = call.keys; i < columns; ++i) row[i] = row[0];
    Vec most = vec(row);
    for (int64_t i = kLanes; i < columns; i += kLanes) {
      const Vec x = vec(row + i);
      most = x > most ? x : most;
    }
    float largest = most[0];
    for (int i = 1; i < kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
    for (int64_t i = 0; i < columns; i += kLanes) put(row + i, exp_of(vec(row + i) - largest));
    for (int64_t i = call.keys; i < columns; ++i) row[i] = 0;
    Vec total{};
    for (int64_t first = 0; first < columns; first += kSummed * kLanes) {
      const int64_t end = first + kSummed * kLanes;
      Vec part{};
      for (int64_t i = first; i < end && i < columns; i += kLanes) part += vec(row + i);
      total += part;
    }
    float sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += total[i];
    return sum;
  }

  // kRows rows of `depth` values, `row` apart, times a matrix of `width` columns, a multiple of
  // kLanes, whose rows are `apart`.
  static void multiply(const float* rows, int64_t row, int64_t depth, const float* matrix,
                       int64_t apart, int64_t width, float* to, int64_t to_row) {
    for (int64_t k = 0; k < width; k += kVecs * kLanes) {
      const int64_t vectors = (width - k) / kLanes;
      if (vectors >= kVecs)
        multiply<kVecs>(rows, row, depth, matrix + k, apart, to + k, to_row);
      else if (vectors == 3)
        multiply<kVecs < 3 ? kVecs : 3>(rows, row, depth, matrix + k, apart, to + k, to_row);
      else if (vectors == 2)
        multiply<2>(rows, row, depth, matrix + k, apart, to + k, to_row);
      else
        multiply<1>(rows, row, depth, matrix + k, apart, to + k, to_row);
    }
  }

  template <int vectors>
  static void multiply(const float* rows, int64_t row, int64_t depth, const float* matrix,
                       int64_t apart, float* to, int64_t to_row) {
    for (int64_t first = 0; first < depth; first += kSummed) {
      const int64_t end = first + kSummed < depth ? first + kSummed : depth;
      Vec sum[kRows][vectors] = {};
      for (int64_t c = first; c < end; ++c, matrix += apart) {
        Vec m[vectors];
        for (int j = 0; j < vectors; ++j) m[j] = vec(matrix + j * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const float x = rows[r * row + c];
#pragma GCC unroll 4
          for (int j = 0; j < vectors; ++j) sum[r][j] += x * m[j];
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
        for (int j = 0; j < vectors; ++j) {
          float* at = to + r * to_row + j * kLanes;
          put(at, first ? vec(at) + sum[r][j] : sum[r][j]);
        }
    }
  }
};

void attention(const AttentionCall& call, int threads) {
  if (call.batch <= 0 || call.heads <= 0 || call.queries <= 0 || call.keys <= 0) return;
  if (call.type == DType::bfloat16)
    Attention<BFloat16>(call).run(threads);
  else
    Attention<float>(call).run(threads);
}
