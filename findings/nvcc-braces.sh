#!/bin/sh
# A list in braces as argument of a member function, in a template.
#
# nvcc 13.0.88 (cudafe++ of CUDA 13.0), g++ as its host compiler; right again in 13.1.80.
#
# Host code is handed to g++ after cudafe++ wrote it out again. In a template, where an argument of a member function is a
# list in braces and one of its elements is a member of an object whose class depends on the template's parameters,
# look({in.mean, x}) is written out as look(({(in.mean), x})): a statement expression of GNU C, whose missing
# semicolon g++ reports in a line that has none missing. Valid C++17 does not compile; g++ alone takes the same file.
# Functions that are no members, members of other classes, and lists that name their type are written out right.
#
# Seen: 13.0.88 "expected ';' before '}'" for the first file, none for the three others; 13.1.80 compiles all.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
write() {
  cat > "$1.cu" <<CU
#include <cstddef>
#include <vector>
using Arrays = std::vector<const void*>;
struct Case { std::size_t look(const Arrays& arrays) { return arrays.size(); } };
std::size_t look(const Arrays& arrays) { return arrays.size(); }
template <class T> struct In { const T* mean; };
template <class T> std::size_t count(T* x) {
  Case c;
  (void)c;
  const In<T> in{x};
  return $2;
}
int main() { float x = 0; return count(&x) == 2 ? 0 : 1; }
CU
  g++ -std=c++17 -x c++ "$1.cu" -o "$1.gcc" && "./$1.gcc"
}
write member 'c.look({in.mean, x})'
write free 'look({in.mean, x})'
write named 'c.look(Arrays{in.mean, x})'
write independent 'c.look({x, x})'

compiled() { # version: the files that it compiles
  python3 -m venv "$1"
  minor=${1%.*}
  "$1/bin/pip" install --quiet "nvidia-cuda-nvcc==$1" "nvidia-cuda-crt==$minor.*" "nvidia-nvvm==$minor.*" \
    "nvidia-cuda-runtime==$minor.*"
  nvcc=$(echo "$1"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
  for file in member free named independent; do
    if "$nvcc" -std=c++17 -c "$file.cu" -o "$file.o" > "$file.$1" 2>&1; then echo "$file"; fi
  done | tr '\n' ' '
}
old=$(compiled 13.0.88)
echo "13.0.88 compiles: $old"
new=$(compiled 13.1.80)
echo "13.1.80 compiles: $new"
grep "error: expected" member.13.0.88
test "$old" = "free named independent "
test "$new" = "member free named independent "
