#!/usr/bin/env bash
# textstat ends a sentence at every point, the decimal point of a number among them: two numbers such as "0.5" in a
# sentence of 25 words take it from US school grade 23.9 to 15.4. Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q textstat==0.7.8
"$folder/venv/bin/python" - <<'PY'
import textstat

plain = (
    "The committee recommended that participating institutions increase their annual contributions considerably "
    "because operational expenses have exceeded projections in several departments during recent years of growth."
)
numbers = plain.replace("considerably", "from 0.5 considerably").replace("projections", "projections by 1.5")
for name, text in (("without numbers", plain), ("with 0.5 and 1.5", numbers)):
    print(f"{name:17} sentences {textstat.sentence_count(text)}, grade {textstat.flesch_kincaid_grade(text):.1f}")
assert textstat.sentence_count(plain) == 1
assert textstat.sentence_count(numbers) > 1, "textstat no longer ends a sentence at a decimal point"
PY
