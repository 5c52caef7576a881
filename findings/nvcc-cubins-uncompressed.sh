#!/bin/sh
# What nvcc's default compression of fat binaries leaves alone.
#
# nvcc 13.0.88, pip's packages.
#
# --compress-mode takes default, size, speed, balance and none. Of an object with machine code alone, as wheels have it that list
# their architectures (code=sm_80), default, speed and balance leave every byte: the object is as long as with none. Only size
# compresses it, to about a sixth here, and so does the older -Xfatbin=-compress-all. Where PTX is in the object, as with
# -arch=sm_80, default makes it smaller; that is the PTX.
#
# Seen: sizes of the objects below; default, speed and balance equal none for code=sm_80, and size is less than a third of it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip install --quiet nvidia-cuda-nvcc==13.0.88 "nvidia-cuda-crt==13.0.*" "nvidia-nvvm==13.0.*" "nvidia-cuda-runtime==13.0.*"
nvcc=$(echo v/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
{
  echo '__global__ void k(float* p) { float x = p[threadIdx.x], y = x;'
  i=0
  while [ $i -lt 800 ]; do
    echo "x = fmaf(x, x, $i.5f); y = fmaf(y, x, $i.25f); __syncthreads();"
    i=$((i + 1))
  done
  echo 'p[threadIdx.x] = x + y; }'
} > k.cu
size() {
  "$nvcc" "$@" -c k.cu -o k.o
  wc -c < k.o
}
cubin='-gencode arch=compute_80,code=sm_80'
none=$(size --compress-mode=none $cubin)
echo "machine code, none: $none"
for mode in default speed balance; do
  bytes=$(size --compress-mode=$mode $cubin)
  echo "machine code, $mode: $bytes"
  test "$bytes" -eq "$none"
done
least=$(size --compress-mode=size $cubin)
all=$(size -Xfatbin=-compress-all $cubin)
echo "machine code, size: $least; -Xfatbin=-compress-all: $all"
test $((3 * least)) -lt "$none"
test $((3 * all)) -lt "$none"
both=$(size --compress-mode=none -arch=sm_80)
mixed=$(size --compress-mode=default -arch=sm_80)
echo "with PTX, none: $both, default: $mixed"
test "$mixed" -lt "$both"
