"""A generated network as files to deploy: C++ with a C interface that needs libc alone, its header, and large weights in a file of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ltcompile.engine.cpu.code import Array
from ltcompile.engine.cpu.generate import PROLOGUE, Unit, with_headers

MOST_INSIDE_BYTES = 8 << 20  # larger weights are in a file of their own
PROBES = 4
TOLERANCE, BF16_TOLERANCE = 1e-4, 2e-2  # of the largest output, or sum; in bf16 sums in another order round to the other side
MOST_SUMS = 256  # that are recorded of an image's outputs
_WEIGHTS = "const float *const WEIGHTS = reinterpret_cast<const float *>(BYTES);"
_PLAIN = {c: chr(c) for c in range(32, 127) if chr(c) not in '"\\?'}  # no ?, which may begin a trigraph
_SHORT = [_PLAIN.get(c, f"\\{c:o}") for c in range(256)]
_LONG = [_PLAIN.get(c, f"\\{c:03o}") for c in range(256)]  # in front of an octal digit

_HEADER = """{comment}
#ifndef {NAME}_H
#define {NAME}_H

#define {NAME}_INPUT_FLOATS {inputs}    /* of one image, {input_shape} */
#define {NAME}_OUTPUT_FLOATS {outputs}    /* of one image, {output_shape} */
#define {NAME}_SCRATCH_BYTES {scratch}

#ifdef __cplusplus
extern "C" {{
#endif

/* Prepares {NAME}_SCRATCH_BYTES bytes at a multiple of 64, once. Each thread that runs the network has scratch memory of its own. */
void {name}_init(void *scratch);

/* The outputs of `count` images. */
void {name}_run(const float *images, float *outputs, long count, void *scratch);
{load}
{symbols}
#ifdef __cplusplus
}}
#endif
#endif
"""
_LOAD = """
/* Reads the weights, {name}.bin, once and before anything runs; 0, or -1 where the file is missing or of another length. */
int {name}_load(const char *path);
"""
_RUN = """
extern "C" void {name}_init(void *scratch) {{ clear(static_cast<float *>(scratch)); }}

extern "C" void {name}_run(const float *images, float *outputs, long count, void *scratch) {{
  for (long n = 0; n < count; n++) image(WEIGHTS, images + n * INPUT, outputs + n * OUTPUT, static_cast<float *>(scratch));
}}
"""
_LOADER = """
extern "C" int {name}_load(const char *path) {{
  FILE *file = fopen(path, "rb");
  if (!file) return -1;
  const size_t read = fread(WEIGHTS, sizeof(float), {count}, file);
  const bool whole = read == {count} && fgetc(file) == EOF;
  return fclose(file) == 0 && whole ? 0 : -1;
}}
"""
_MAIN = """
#ifdef {NAME}_MAIN  // c++ -O3 -march=native -std=c++17 -D{NAME}_MAIN {name}.cpp -o {name} && ./{name}
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
namespace {{
const float ANSWERS[] = {{ {answers} }};  // outputs i, i + {sums}, ... of an image with signs, in sums
alignas(64) unsigned char memory[ARENA * sizeof(float)];
float pixels[{probes} * INPUT], found[{probes} * OUTPUT];

double seconds() {{
  struct timespec now;
  timespec_get(&now, TIME_UTC);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}}

int by_size(const void *a, const void *b) {{
  const double x = *static_cast<const double *>(a), y = *static_cast<const double *>(b);
  return (x > y) - (x < y);
}}
}}

int main({arguments}) {{
{loading}  for (uint32_t i = 0; i < {probes} * INPUT; i++) {{
    uint32_t x = i * 747796405u + 2891336453u;
    x = (x ^ (x >> 15)) * 2246822519u;
    x = (x ^ (x >> 13)) * 3266489917u;
    pixels[i] = (float){low} + (float){range} * ((float)((x ^ (x >> 16)) >> 8) / 16777216.0f);
  }}
  {name}_init(memory);
  {name}_run(pixels, found, {probes}, memory);
  double error = 0, largest = 0, times[200];
  static double sums[{probes} * {sums}];
  for (int n = 0; n < {probes}; n++)
    for (uint32_t i = 0; i < OUTPUT; i++) sums[n * {sums} + i % {sums}] += i * 2654435761u >> 31 ? found[n * OUTPUT + i] : -found[n * OUTPUT + i];
  for (int i = 0; i < {probes} * {sums}; i++) {{
    error = fmax(error, fabs((double)((float)sums[i] - ANSWERS[i])));
    largest = fmax(largest, fabs((double)ANSWERS[i]));
    if (sums[i] != sums[i]) error = HUGE_VAL;
  }}
  for (double &t : times) {{
    const double before = seconds();
    {name}_run(pixels, found, 1, memory);
    t = seconds() - before;
  }}
  qsort(times, 200, sizeof(double), by_size);
  const bool same = error <= {tolerance} * largest;
  const char *verdict = same ? "as recorded" : "WRONG";
  printf("{name}: {probes} answers %s, off by %.1e of the largest; %.4f ms an image\\n", verdict, error / largest, 1e3 * times[100]);
  return same ? 0 : 1;
}}
#endif
"""


@dataclass(frozen=True)
class Recorded:
    """What a file checks itself against: answers to PROBES images of `probes(low, high)`, within `tolerance` of the largest."""

    low: float
    high: float
    answers: Array
    tolerance: float


def probes(low: float, high: float, shape: Sequence[int]) -> Array:
    """PROBES images (PROBES, C, H, W) of noise between two values, as the generated `main` computes them."""
    count = int(np.prod(shape))
    x = np.arange(PROBES * count, dtype=np.uint32) * np.uint32(747796405) + np.uint32(2891336453)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(2246822519)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(3266489917)
    uniform = ((x ^ (x >> np.uint32(16))) >> np.uint32(8)).astype(np.float32) / np.float32(16777216)
    images: Array = (np.float32(low) + np.float32(high - low) * uniform).reshape(PROBES, *shape)
    return images


def sums_of(answers: Array) -> Array:
    """What the generated `main` compares: each output with a sign, and in sums where there are many, so that each counts and a file stays small."""
    flat = answers.reshape(len(answers), -1).astype(np.float64)
    numbers, count = np.arange(flat.shape[1], dtype=np.uint32), min(MOST_SUMS, flat.shape[1])
    signed = np.where(numbers * np.uint32(2654435761) >> np.uint32(31), flat, -flat)
    padded = np.pad(signed, ((0, 0), (0, -flat.shape[1] % count)))
    found: Array = padded.reshape(len(answers), -1, count).sum(1).astype(np.float32)
    return found


def identifier(stem: str) -> str:
    """A file's name as one of C."""
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    return f"n{name}" if not name or name[0].isdigit() else name


def header(unit: Unit, name: str, texts: Mapping[str, str], symbols: str = "") -> str:
    """The C header of a network. `texts` are what a deployment has to know, `symbols` the declarations of more constants."""
    shapes = (", ".join(map(str, shape[1:])) for shape in (unit.input_shape, unit.output_shape))
    return _HEADER.format(
        comment=_comment(texts),
        name=name,
        NAME=name.upper(),
        inputs=int(np.prod(unit.input_shape)),
        outputs=int(np.prod(unit.output_shape)),
        scratch=4 * unit.arena_floats,
        load=_LOAD.format(name=name) if outside(unit) else "",
        symbols=symbols,
        **dict(zip(("input_shape", "output_shape"), shapes, strict=True)),
    )


def source(unit: Unit, name: str, texts: Mapping[str, str], recorded: Recorded) -> str:
    """The C++ file of a network, with its weights unless they are `outside`."""
    declared, defined = symbols(name, texts)
    apart = outside(unit)
    count = unit.weights.size
    if apart:
        weights = f"alignas(64) float WEIGHTS[{count}];"
    else:  # a compiler reads a string twenty times as fast as numbers
        weights = f"alignas(64) const char BYTES[] =\n{quoted_bytes(unit.weights.tobytes())};\n" + _WEIGHTS
    main = _MAIN.format(
        name=name,
        NAME=name.upper(),
        answers=numbers(sums_of(recorded.answers).reshape(-1)),
        sums=min(MOST_SUMS, recorded.answers[0].size),
        probes=PROBES,
        low=literal(recorded.low),
        range=literal(recorded.high - recorded.low),
        tolerance=recorded.tolerance,
        arguments="int count, char **words" if apart else "",
        loading=f'  if ({name}_load(count > 1 ? words[1] : "{name}.bin")) return fprintf(stderr, "{name}.bin cannot be read\\n"), 2;\n'
        if apart
        else "",
    )
    return "".join(
        [
            header(unit, name, texts, declared),
            "\n" + PROLOGUE,
            "#include <stdio.h>\n" if apart else "",
            "#pragma GCC diagnostic ignored \"-Wunused-function\"\n\nnamespace {\n",
            with_headers(unit.headers).removeprefix(PROLOGUE),
            unit.body,
            weights,
            "\n}\n",
            _RUN.format(name=name),
            _LOADER.format(name=name, count=count) if apart else "",
            defined,
            main,
        ]
    )  # fmt: skip


def outside(unit: Unit) -> bool:
    """Whether the weights are in a file of their own, `unit.weights` as bytes."""
    return unit.weights.nbytes > MOST_INSIDE_BYTES


def symbols(name: str, texts: Mapping[str, str]) -> tuple[str, str]:
    """Declarations and definitions of the preprocessing and the names of classes, where `texts` hold them as JSON."""
    declared, defined = list[str](), list[str]()
    for key in ("mean", "std"):
        if (values := _parsed(texts.get(key))) and all(isinstance(v, int | float) for v in values):
            declared.append(f"extern const float {name}_{key}[{len(values)}]; /* a channel, of pixels from 0 to 1 */")
            defined.append(f'extern "C" const float {name}_{key}[{len(values)}] = {{ {numbers(np.array(values, np.float32))} }};')
    if classes := _parsed(texts.get("class_names")):
        quoted = ", ".join(_quoted(str(text)) for text in classes)
        declared.append(f"extern const char *const {name}_classes[{len(classes)}]; /* in UTF-8 */")
        defined.append(f'extern "C" const char *const {name}_classes[{len(classes)}] = {{ {quoted} }};')
    return "\n".join(declared) + "\n", "\n".join(defined) + "\n"


def _parsed(text: str | None) -> list[object]:
    try:
        value = json.loads(text or "[]")
    except ValueError:
        return []
    return value if isinstance(value, list) else []


def _quoted(text: str) -> str:
    """A C string; every byte that is not a letter, a digit or a space is escaped in octal."""
    plain = "".join(chr(b) if b == 32 or (b < 128 and chr(b).isalnum()) else f"\\{b:03o}" for b in text.encode())
    return f'"{plain}"'


def _comment(texts: Mapping[str, str]) -> str:
    """Texts as comments of one line each."""
    lines = [f"{key}: {value}" for key, value in texts.items()]
    safe = (re.sub(r"[^\x20-\x7e]|\\|\*/|/\*|\?\?", "?", line)[:400] for line in ["generated by ltcompile", *lines])
    return "\n".join(f"/* {line} */" for line in safe)


def literal(value: float) -> str:
    """A float in C++, exactly."""
    return numbers(np.array([value], np.float32))


def numbers(values: Array) -> str:
    """Floats in C++, exactly, separated by commas, in lines."""
    texts = [f"{text}f" for text in values.astype(np.float32).astype(str).tolist()]
    for at in np.flatnonzero(~np.isfinite(values)):
        value = values[at]
        texts[at] = '__builtin_nanf("")' if np.isnan(value) else f"{'-' if value < 0 else ''}__builtin_inff()"
    return ",\n".join(",".join(texts[at : at + 12]) for at in range(0, len(texts), 12))


def quoted_bytes(data: bytes) -> str:
    """Bytes as C strings of 96 each, one a line."""
    lines = (data[at : at + 96] for at in range(0, len(data), 96))
    return "\n".join(f'"{_escaped(line)}"' for line in lines)


def _escaped(data: bytes) -> str:
    return "".join([(_LONG if 48 <= after < 56 else _SHORT)[byte] for byte, after in zip(data, data[1:] + b"\0", strict=True)])
