"""The shared library within a process: unloading it, its threads, the caller's floating-point mode."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import adaptk
import c_abi
import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="dlclose and fenv.h as Linux has them")

PROGRAM = r"""
#include "adaptk/adaptk.hpp"

#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <vector>

using adaptk::Plan;
using adaptk::Tensor;

#define CHECK(x) ((x) ? void() : (std::printf("%d: %s\n", __LINE__, #x), std::exit(1)))

template <class T> concept gets = requires(T&& t) { static_cast<T&&>(t).get(); };
static_assert(gets<Tensor&> && gets<const Tensor&> && !gets<Tensor> && !gets<const Tensor>);

template <class F> std::string refused(const F& f) {
    try {
        f();
    } catch (const adaptk::Error& e) {
        CHECK(e.status() == ADAPTK_INVALID_ARGUMENT);
        return e.what();
    }
    return "nothing";
}

int main() {
    std::vector<float> a(3), b(4), c(5), own(4);
    std::vector<double> d(2);
    {
        // Groups with states of the plan's own, of the caller's, without any, and in the end of the plan's again.
        Plan plan("momentum", {a, d});
        const Tensor given[] = {Tensor(b)}, states[] = {Tensor(own)};
        Plan other("momentum", given, states, {});
        plan.add_group("sgd", {b});
        plan.add_group("delta_bar_delta", {c}, {{"lr", 0.25}});
        CHECK(plan.state<float>(0, 0).size() == 3 && plan.state<double>(1, 0).size() == 2);
        CHECK(plan.state<float>(3, 0).size() == 5 && plan.state<float>(3, 1).size() == 5);
        CHECK(plan.state<float>(3, 0)[4] == 0.0f && plan.state<float>(3, 1)[4] == 0.25f);
        CHECK(refused([&] { plan.state<float>(4, 0); }) == "param: 4, expected less than 4");
        CHECK(refused([&] { plan.state<float>(2, 0); }) == "state: 0, expected less than 0");
        CHECK(refused([&] { plan.state<float>(3, 2); }) == "state: 2, expected less than 2");
        CHECK(refused([&] { plan.state<float>(1, 0); }) == "state: of type double");
        CHECK(refused([&] { other.state<float>(0, 0); }) == "param: the states of number 0 are the caller's");
        other.add_group("momentum", {c});
        CHECK(other.state<float>(1, 0).size() == 5);
        // Earlier groups go on.
        const std::vector<float> ga(3, 1.0f), gb(4), gc(5);
        const std::vector<double> gd(2);
        plan.step({ga, gd, gb, gc});
        const float before = plan.state<float>(0, 0)[0];
        CHECK(before != 0.0f);
        std::vector<float> late(2);
        plan.add_group("momentum", {late});
        CHECK(plan.state<float>(0, 0)[0] == before && plan.state<float>(4, 0)[1] == 0.0f);
    }
    // States in other formats.
    {
        std::vector<float> w(5000, 1.0f), small(10, 1.0f), g(5000, 0.5f);
        const std::vector<float> gs(10, 0.5f);
        std::vector<double> wide(3);
        const std::vector<double> gw(3);
        Plan plan("adam", {w, small, wide}, {{"lr", 0.1}}, {.format = "8bit", .seed = 7});
        CHECK(plan.seed() == 7 && plan.stored(0, 0).format == std::string("int8"));
        CHECK(plan.stored(0, 1).format == std::string("uint8") && plan.stored(0, 1).scales.size() == 40);
        CHECK(plan.state<float>(1, 0).size() == 10 && plan.state<double>(2, 0).size() == 3);
        CHECK(refused([&] { plan.state<float>(0, 0); }) == "state: stored as int8; see stored()");
        CHECK(refused([&] { plan.stored(3, 0); }) == "param: 3, expected less than 3");
        std::vector<signed char> codes(5000);
        std::vector<unsigned char> squares(5000);
        std::vector<float> scales(40), square_scales(40), twin(w);
        const adaptk::Stored states[] = {{Tensor(codes.data(), 5000, ADAPTK_INT8), scales},
                                         {Tensor(squares.data(), 5000, ADAPTK_UINT8), square_scales, "uint8"}};
        const std::vector<float> zeros(5000);
        for (const adaptk::Stored& s : states) adaptk::quantize(zeros, s);
        for (int step = 1; step < 4; ++step) {
            for (std::size_t i = 0; i < g.size(); ++i) g[i] = float(i % 17) - 8.0f;
            plan.step({g, gs, gw});
            adaptk::step("adam", {{"lr", 0.1}}, step, twin, g, states, 7);
        }
        CHECK(w == twin && w[0] != 1.0f);
        CHECK(adaptk::dequantize(plan.stored(0, 0)) == adaptk::dequantize(states[0]));
        CHECK(adaptk::dequantize(plan.stored(0, 1)) == adaptk::dequantize(states[1]));
        // Of the caller's, beside a group with one format for each state.
        const Tensor params[] = {Tensor(twin)};
        Plan given("adam", params, states, {});
        CHECK(refused([&] { given.stored(0, 0); }) == "param: the states of number 0 are the caller's");
        std::vector<float> more(3);
        given.add_group("adam", {more}, {}, {.of_state = {{"exp_avg_sq", "8bit"}}, .seed = 2, .min_8bit_size = 0});
        CHECK(given.state<float>(1, 0).size() == 3 && given.stored(1, 1).scales.size() == 1);
        CHECK(given.seed(0) == 0 && given.seed(1) == 2);
        CHECK(Plan("adam", {more}, {}, {.format = "fp8_e4m3"}).state<float>(0, 0).size() == 3);
        std::vector<float> last(3);
        given.add_group("adam", {last}, {}, {.format = "fp8_e4m3", .min_8bit_size = 0});
        CHECK(given.stored(2, 0).scales.size() == 1 && given.stored(2, 1).format == std::string("fp8_e4m3"));
        given.set_seed(5);
        CHECK(given.seed() == 5);
        const auto unknown = [&](const adaptk::Storage& storage) {
            try {
                Plan("adam", {more}, {}, storage);
            } catch (const adaptk::Error& e) {
                return std::string(e.what());
            }
            return std::string("nothing");
        };
        CHECK(unknown({.format = "5bit"}).starts_with("storage: name: unknown format '5bit'; there are float32,"));
        CHECK(unknown({.format = "float64"}) == "storage: float64 states are for float64 params");
        CHECK(unknown({.of_state = {{"sum", "8bit"}}}) ==
              "storage: adam has no state 'sum'; there are exp_avg, exp_avg_sq");
        CHECK(refused([&] { adaptk::step("adam", {}, 1, more, more, {states, 1}, 0); }) ==
              "states: adam has 2, and 1 are given");
    }
    // Initial values are rounded as a step rounds, whatever the caller's mode is, and trap nothing.
    for (const int mode : {FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO}) {
        std::vector<float> p(3), eta(3), bar(3);
        CHECK(std::fesetround(mode) == 0);
        CHECK(feenableexcept(FE_ALL_EXCEPT) != -1);
        Plan plan("delta_bar_delta", {p}, {{"lr", 0.1}});
        const Tensor params[] = {Tensor(p)}, states[] = {Tensor(bar), Tensor(eta)};
        Plan given("delta_bar_delta", params, states, {{"lr", 0.1}});
        const bool filled = adaptk_plan_init_states(given.get()) == ADAPTK_OK;
        CHECK(std::fegetround() == mode);
        CHECK(fedisableexcept(FE_ALL_EXCEPT) == FE_ALL_EXCEPT);
        CHECK(std::fesetround(FE_TONEAREST) == 0);
        CHECK(filled && eta[1] == 0.1f && plan.state<float>(0, 1)[1] == 0.1f);
    }
    std::puts("done");
}
"""

# Loads the library, takes a step on several threads, and closes it while they wait for work.
UNLOAD = r"""
#include "adaptk/adaptk.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char** argv) {
    enum { n = 1 << 20 };
    float* p = calloc(n, sizeof *p);
    float* g = calloc(n, sizeof *g);
    int64_t shape[1] = {n};
    adaptk_tensor tp = adaptk_make_tensor(p, ADAPTK_FLOAT32, 1, shape);
    adaptk_tensor tg = adaptk_make_tensor(g, ADAPTK_FLOAT32, 1, shape);
    const adaptk_tensor *params[1], *grads[1];
    params[0] = &tp;
    grads[0] = &tg;
    for (int i = 0; i < 2; ++i) {
        void* library = dlopen(argv[argc - 1], RTLD_NOW);
        if (library == NULL) return 2;
        adaptk_status (*threads)(int) = (adaptk_status(*)(int))dlsym(library, "adaptk_set_num_threads");
        adaptk_status (*step)(const char*, const adaptk_hyper*, size_t, int64_t, size_t, const adaptk_tensor* const*,
                              const adaptk_tensor* const*, const adaptk_tensor* const*, const adaptk_step_options*,
                              adaptk_step_report*) = (void*)dlsym(library, "adaptk_step");
        if (threads(4) != ADAPTK_OK) return 3;
        if (step("sgd", NULL, 0, 1, 1, params, grads, NULL, NULL, NULL) != ADAPTK_OK) return 4;
        if (dlclose(library) != 0) return 5;
        usleep(200000);
    }
    puts("done");
    return 0;
}
"""


def built(folder: Path, name: str, text: str, *flags: str) -> Path:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++") if name.endswith("cpp") else ("cc", "gcc"))), None)
    if compiler is None:
        pytest.skip("needs a compiler")
    (folder / name).write_text(text)
    program = folder / "program"
    command = [compiler, "-O1", "-Wall", "-Wextra", "-I", str(c_abi.HEADER.parent.parent), str(folder / name), *flags]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def test_plans_in_cpp(tmp_path: Path) -> None:
    """What adaptk.hpp adds: states by the index of their param, and no tensor that points into a temporary one."""
    rpath = f"-Wl,-rpath,{c_abi.LIBRARY.parent}"
    program = built(tmp_path, "plans.cpp", PROGRAM, "-std=c++20", "-Werror", str(c_abi.LIBRARY), rpath)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stdout


def test_the_library_is_closed_after_a_step_on_several_threads(tmp_path: Path) -> None:
    """The threads of OpenMP's runtime still wait for work, so it must not be unloaded."""
    if adaptk._core.openmp is None:
        pytest.skip("built without OpenMP")
    program = built(tmp_path, "unload.c", UNLOAD, "-std=gnu11", "-ldl")
    done = subprocess.run([program, str(c_abi.LIBRARY)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.parametrize("count", ["5000", "100000"])
def test_more_threads_than_can_be_set(count: str) -> None:
    """OMP_NUM_THREADS may exceed what adaptk_set_num_threads accepts: a number that is read can be set again."""
    if adaptk._core.openmp is None:
        pytest.skip("built without OpenMP")
    code = "import adaptk; n = adaptk.get_num_threads(); adaptk.set_num_threads(n); print(n)"
    environment = {k: v for k, v in os.environ.items() if k != "ADAPTK_NUM_THREADS"} | {"OMP_NUM_THREADS": count}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "1024\n", done.stderr


RUN = """
#include "adaptk/rules.hpp"
#include "adaptk/run.hpp"
using V = std::span<float>;
void f(V p, V g, V m, V v) { adaptk::run<adaptk::Adam>(adaptk::defaults<adaptk::Adam>(), 1, p, g, m, v); }
void f(V p, V g) { adaptk::run<adaptk::Sgd>(adaptk::defaults<adaptk::Sgd>(), 1, p, g); }
"""


@pytest.mark.parametrize("level", ["-O1", "-O2"])
def test_rules_in_a_program_without_warnings_of_clang(level: str, tmp_path: Path) -> None:
    """Without -fno-math-errno a square root prevents vectorisation in Clang, which warns about it."""
    clang = next(filter(None, map(shutil.which, ("clang++", "clang++-14"))), None)
    if clang is None:
        pytest.skip("needs clang++")
    (tmp_path / "run.cpp").write_text(RUN)
    include = ["-I", str(c_abi.HEADER.parent.parent)]
    command = [clang, "-std=c++20", level, "-Wall", "-Wextra", "-Werror", *include, "-c", "run.cpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
