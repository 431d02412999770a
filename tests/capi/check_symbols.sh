#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check_symbols.sh LIBRARY HEADER: the library shows the functions of the header and nothing else, under one
# version, and needs nothing but the C and C++ runtimes.
set -euo pipefail
export LC_ALL=C
library=$1 header=$2
abi=$(sed -n 's/^#define EARNEST_ABI_VERSION //p' "$header")

declared=$(grep -v '^ \*' "$header" | grep -o 'earnest_[a-z0-9_]*(' | tr -d '(' | sort -u)
shown=$(nm -D --defined-only "$library" | awk '$2 != "A" {print $3}' | sort)
expected=$(sed "s/\$/@@EARNEST_$abi/" <<<"$declared")
if [[ $shown != "$expected" ]]; then
  echo "symbols: expected those of the header (<), got (>):"
  diff <(echo "$expected") <(echo "$shown")
  exit 1
fi

soname=$(readelf -d "$library" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
[[ $soname == "libearnest.so.$abi" ]] || { echo "SONAME: expected libearnest.so.$abi, got $soname"; exit 1; }

needed=$(readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
for name in $needed; do
  case $name in
    libstdc++.so.* | libgcc_s.so.* | libc.so.* | libm.so.* | libpthread.so.* | ld-linux*.so.*) ;;
    *) echo "NEEDED: expected the C and C++ runtimes alone, got $name"; exit 1 ;;
  esac
done
if readelf -d "$library" | grep -qE '\((RPATH|RUNPATH|TEXTREL)\)'; then
  echo "expected no RPATH, RUNPATH and TEXTREL, got one"
  exit 1
fi
echo "$(wc -l <<<"$declared") functions, $soname, needs" $needed
