// All solvers.
#pragma once

#include "adaptk/solve/cg.hpp"
#include "adaptk/solve/conjugate_gradient.hpp"
#include "adaptk/solve/covariance.hpp"
#include "adaptk/solve/differences.hpp"
#include "adaptk/solve/levenberg_marquardt.hpp"
#include "adaptk/solve/newton.hpp"
#include "adaptk/solve/newton_cg.hpp"
#include "adaptk/solve/steepest_descent.hpp"
