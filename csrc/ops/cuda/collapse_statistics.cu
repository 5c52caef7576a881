#include "ops/cuda/collapse_statistics.cuh"

namespace lineavae {

template void collapse_statistics(Cuda, const CollapseStatistics<float>&);
template void collapse_statistics(Cuda, const CollapseStatistics<double>&);
template void collapse_statistics(Cuda, const CollapseStatistics<Float16>&);
template void collapse_statistics(Cuda, const CollapseStatistics<BFloat16>&);

}  // namespace lineavae
