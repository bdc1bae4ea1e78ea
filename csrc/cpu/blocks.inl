// Blocks of elements, converted to the compute type on the stack and back: the arithmetic exists
// once for float and once for double, whatever the tensors hold.

constexpr int64_t kBlock = 512;

// Threads for a loop over `units`: none is started for less than `kGrain` elements.
constexpr int64_t kGrain = 16384;
int workers(int threads, int64_t units, int64_t elements) {
  const int64_t useful = elements / kGrain, most = units < useful ? units : useful;
  return int(threads < most ? threads : most < 1 ? 1 : most);
}

// body(0) … body(n - 1) by a team of threads. A team of one stays out of the OpenMP runtime.
template <class Body>
void parallel_for(int team, int64_t n, const Body& body) {
  if (team <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(team)
  for (int64_t i = 0; i < n; ++i) body(i);
}

template <class C>
constexpr DType kTypeOf = sizeof(C) == 8 ? DType::float64 : DType::float32;

// Ask for elements start … start + n - 1 before they are needed; they may lie past the end.
[[maybe_unused]] void fetch(const void* array, DType type, int64_t start, int64_t n) {
  const char* at = static_cast<const char*>(array) + start * size_of(type);
  for (int64_t i = 0; i < n * size_of(type); i += 64) __builtin_prefetch(at + i);
}

template <class C, class T>
void convert(const T* from, int64_t n, C* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = C(load(from + i));
}

// Elements start … start + n - 1 of an array as compute values: in place where they are that
// already, else converted into `buffer`.
template <class C>
const C* loaded(const void* array, DType type, int64_t start, int64_t n, C* buffer) {
  if (type == kTypeOf<C>) return static_cast<const C*>(array) + start;
  switch (type) {
    case DType::float32: convert(static_cast<const float*>(array) + start, n, buffer); break;
    case DType::float64: convert(static_cast<const double*>(array) + start, n, buffer); break;
    case DType::float16: convert(static_cast<const Half*>(array) + start, n, buffer); break;
    case DType::bfloat16: convert(static_cast<const BFloat16*>(array) + start, n, buffer); break;
  }
  return buffer;
}

// Through Wide, which store() takes. Consecutive elements have a loop of their own: it vectorises.
template <class Wide, class C, class T>
void convert_back(const C* from, int64_t n, T* to, int64_t step) {
  if (step == 1) {
    for (int64_t i = 0; i < n; ++i) store(to + i, Wide(from[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) store(to + i * step, Wide(from[i]));
  }
}

// Where to compute n elements that go to `start` of an array: right there, or in `buffer`, which
// stored() then converts.
template <class C>
C* target(void* array, DType type, int64_t start, C* buffer) {
  return type == kTypeOf<C> ? static_cast<C*>(array) + start : buffer;
}

// Write compute values to elements start, start + step, … of an array.
template <class C>
void stored(const C* values, void* array, DType type, int64_t start, int64_t n, int64_t step = 1) {
  switch (type) {
    case DType::float32:
      return convert_back<float>(values, n, static_cast<float*>(array) + start, step);
    case DType::float64:
      return convert_back<double>(values, n, static_cast<double*>(array) + start, step);
    case DType::float16:
      return convert_back<float>(values, n, static_cast<Half*>(array) + start, step);
    case DType::bfloat16:
      return convert_back<float>(values, n, static_cast<BFloat16*>(array) + start, step);
  }
}
