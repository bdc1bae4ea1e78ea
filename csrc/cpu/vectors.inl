// Vectors of floats, as wide as the instruction set has them.
//
// The file that includes this one defines kLanes, the floats of a vector, and kRows and kVecs: the
// sums of kRows rows by kVecs vectors of columns of a matrix product fit the registers.

constexpr int64_t kLine = 64;  // bytes between planes and rows: else they share cache sets

typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

SDSGSM_HD Vec vec(const float* at) { return *reinterpret_cast<const Vec*>(at); }
SDSGSM_HD void put(float* at, Vec value) { *reinterpret_cast<Vec*>(at) = value; }
