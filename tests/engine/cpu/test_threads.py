"""The team of threads of generated code: every part once, steps in order, and no data race as far as the thread sanitizer sees."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ltcompile.engine.cpu.generate import with_headers

_MAIN = """
#include <stdio.h>
#include <unistd.h>
static int done[3][5], wrong;  // by part and step; the last step has one part, which only the caller computes
static void work(void *turn, int step, int part, int thread) {
  const int now = *static_cast<int *>(turn);
  int bad = step == 4 && thread != 0;
  for (int p = 0; step > 0 && p < 3; p++) bad += done[p][step - 1] != now + 1;
  __atomic_add_fetch(&wrong, bad, __ATOMIC_RELAXED);
  for (int p = part; p < 3; p += step == 4 ? 1 : 3) done[p][step]++;
}
struct Caller {
  Team *team;
  int runs;
};
static void *call(void *argument) {
  Caller &caller = *static_cast<Caller *>(argument);
  const bool shared[] = {true, true, true, true, false};
  for (int n = 0; n < 400; n++) {
    if (!caller.team->take()) continue;
    int turn = done[0][4];
    caller.team->run(work, &turn, 5, shared);
    caller.team->release();
    caller.runs++;
    if (n % 100 == 0) usleep(1000);  // the threads fall asleep
  }
  return nullptr;
}
int main() {
  Team team(3);
  Caller callers[3] = {{&team, 0}, {&team, 0}, {&team, 0}};
  pthread_t ids[3];
  for (int i = 0; i < 3; i++) pthread_create(&ids[i], nullptr, call, &callers[i]);
  int runs = 0;
  for (int i = 0; i < 3; i++) {
    pthread_join(ids[i], nullptr);
    runs += callers[i].runs;
  }
  for (int step = 0; step < 5; step++) {
    for (int p = 0; p < 3; p++) wrong += done[p][step] != runs;
  }
  printf("%d runs, %d wrong\\n", runs, wrong);
  return wrong || runs < 100;
}
"""


def test_parts_are_computed_once_and_in_order(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    source, binary = tmp_path / "team.cpp", tmp_path / "team"
    source.write_text(with_headers(["threads.h"]) + _MAIN)
    subprocess.run(
        ["g++", "-O1", "-std=c++17", "-fsanitize=thread", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(binary)], check=True
    )
    subprocess.run([str(binary)], check=True, timeout=60)
