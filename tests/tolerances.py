"""Every bound that the tests of theory use, and why it is what it is.

A bound is a statement about rounding, about a truncated expansion, about the order of a neglected term, or about
sampling noise in standard errors. Where a prediction is compared with a Monte Carlo run, the bounds on the relative
difference are those that the package documents (`varprop.simulator.compare`), and count only beyond `BEYOND` standard
errors of the run itself.
"""

from __future__ import annotations

BEYOND = 4.0
"""Standard errors; a normal deviate is further out once in 16,000 draws."""

SHARE_BEYOND = 0.01
"""Share of exact layers that may lie beyond `BEYOND`: a mean of log-normal draws strays further than a normal."""

MEAN_SQUARE_Z = (0.5, 2.0)
"""Of many z-scores. It is 1 for honest standard errors; layers of one run share draws, which leaves few independent
scores a seed, and ten seeds leave their mean square within a factor of two."""

ROUNDING = 1e-12
"""float64 sums of up to a few hundred terms in another order, relative to the largest."""

DEEP_ROUNDING = 1e-9
"""Hundreds of layers' rounding: 300 steps of a few 1e-14 each, and room for logs."""

SERIES = 1e-6
"""Dual activations from a few dozen Hermite terms and a tail term, at correlations up to 0.5: 2^-32 times the tail."""

INTERPOLATED = 2e-4
"""The same with coefficients interpolated cubically between deviations 0.1 apart on a log scale: 9/384 (0.1)^4 times
a fourth derivative, 16 for a square and up to 80 where a function bends."""

KINK = 1e-3
"""Hermite terms beyond 32 of a function with a kink: squared coefficients fall as 0.13 k^(-5/2), of which every second
one counts, 4e-4 of ReLU's second moment; twice that at correlation -1, where the tail term has the wrong sign."""

QUADRATURE = 1e-6
"""Law of a quadratic form: composite Gauss-Legendre on a logarithmic grid that is cut at exp(-25)."""

SAMPLED = 1.5e-2
"""Averages over sampled channels: four standard errors of 2^15 maxima of spread 0.7, with room for shared samples;
their squares, of spread 2, get twice that."""

EVENLY = 0.35
"""Noise of E[1 / v] over 512 channels whose v takes its quantiles, over that of as many draws: the directions that rule
keep theirs where the weights' covariance is made exact, and leave .3."""

CUBATURE = 5e-3
"""Averages over 2^15 low-discrepancy kernels of nine weights and over sampled input channels, whose variances are known
to one or two percent; a ratio v / (v + eps) feels a quarter of that."""

NEXT_ORDER = 2e-4
"""What is left of a 1/B law after one step of Richardson extrapolation from B = 64 and 256: c / (64 * 256)."""

PRINTED = 1e-3
"""Numbers known to three printed digits: half a unit in the last place, and as much for our own draws."""

LIMIT = 1e-4
"""The correlation map's rate after 1000 layers and one Richardson step: (ln l / l)^2, which is 5e-5."""

WIDTH_256 = 0.02
"""Infinite-width prediction of five layers at width 256: depth / width, times an order-one constant. It holds where
every activation is at its own gain; far from it (SiLU under He's rule, whose signal dies) the constant is ten."""

RATE = (-1.3, -0.7)
"""Exponent of the finite-width error between widths 8 and 64. One is the theory; the next order, a fifth of the first
at width 8, moves it by 0.1, and noise by one or two of `RATE_NOISE`. Excludes 1/2 and 2."""

RATE_NOISE = 0.15
"""Largest standard error of that exponent for the regression to mean anything."""

MOBILENET = {"forward median": 0.003, "forward worst": 0.03, "step median": 0.012, "step worst": 0.08}
"""Accuracy of theory for MobileNetV2 with BN; `worst` counts the excess over `BEYOND` standard errors. Photographs
decide the worst step: the first layers, where a few hundred sampled channels leave 2%."""

ACCUMULATED = {"gaussian": 0.12, "photo": 0.2}
"""Gradients at any layer of the same: 10% is what theory is meant to keep within on noise, and 60 draws add a quarter
of that. On photographs the first layers add to that."""

OPPOSED = 0.012
"""Steps through normalised layers of width 64: terms of second order, (2 depth / width)^2, where the first order that
is tested is 3% to 9%."""

SPHERE_STEP = 5e-3
"""Normalised layers of width 1024 and depth 4, forward and a step back: depth / width, which opposed gradients and
strayed kernels reach at first order; theory knows of it, and is only off in the second."""

FEW_POINTS = 1e-2
"""Averages over two thousand directions: .2% in three dimensions, .9% seen in five where what points have in common
rules."""

WIDTH_128 = 0.01
"""The signal behind two normalised layers of width 128 on a batch of six: channels stray by 1 / 128 at first order, of
which the normalisation leaves the second."""

KNOWN_SLOPES = 0.15
"""Products of slopes at three samples of three channels of 144 positions, each of a spread of half its size, and the
gradients that are drawn there: four standard errors of 4%."""

RANDOM_MATRIX = 0.012
"""Free products of random covariances of 7 to 128 dimensions, of which the first three moments are followed and the
shape is that of a family: 1 / dimensions of what a layer changes, beyond the draws' own standard errors."""

DEEP_LINEAR = 0.012
"""The same for a step of the gradient through one layer of a deep linear net of width 128 or more."""

LEVELS = 5e-3
"""Averages over log-normal levels by seven nodes: the next moments, (variance / 2)^7 / 7!, and 1e-6 of interpolation
over the differences between levels."""

LEVELS_WALK = 0.35
"""Variance of levels after 16 layers of width 64 or 128, where it is .1 to .6: a log-normal law has two thirds of the
skewness that convex maps give levels, and skewness feeds the variance of the next layers."""

LEVELS_MEET = 0.05
"""Covariance of the levels of a shortcut and of a branch behind two layers of 16 channels, and their sum's variance:
second order in 1 / width."""

STRAYED = 0.04
"""Participation of a deep kernel's modes: a share of it comes from levels, known as above."""

DRAWN_NEIGHBOURS = 0.08
"""Products of neighbours among 500 rough points: 300 directions are drawn, and what the others take from these is
left out; directions enlarged to the points' own size gave 20% to 30% more."""

NEAR = 4e-3
"""Granted beyond standard errors to means over draws that hardly differ: twice the noise of 256 sampled channels."""

PAIRS_OF_PLACES = 0.2
"""Windows on small maps: pairs of positions at every offset have less room than theory, which looks at none, and
zero padding weighs otherwise on each; of what strays that leaves 1 / width."""

NARROW_STEP = 0.05
"""A step of the gradient through normalised convolutions of 16 channels: second order, (depth / width)^2."""

RESIDUAL = 0.05
"""The gradient before three residual blocks of 32 channels, as what later slopes know of earlier blocks is left out."""

NARROW_STRAYS = 0.025
"""Kernels of six layers of 16 channels: the spectrum of one draw stands for all, of which the second moments differ by
an eighth (standard deviation), and what bends with it is off by its square."""

BANDS = 0.05
"""Share of draws between quantiles: what theory is meant to keep within, and three standard errors of 300 draws each
of layers that share them."""

STEP_AT_POOLING = 0.02
"""A step through depthwise layers near a global pooling: gradients count as white noise and a part that is the same all
over a map, where neighbours are more alike than others; eight samples, of which that part has one value each."""

ORTHOGONAL_STEP = 0.02
"""A backward step of a linear net of 64 channels with normalisation and orthogonal weights: 1 / width is left out."""

BENT_POINT = 2e-5
"""Gradients at single points against finite differences of kernels: steps of 1e-3 squared, times fourth derivatives."""

BENT_MAP = 0.25
"""Of what bent slopes add on 6 x 6 maps: places at the border, half of all, are smaller and are followed as all are."""

BENT_STEP = 0.03
"""Of a gradient at data before a normalisation: (2 / fan_in)^2 times the places that know an input, 1 / width, both
about one percent."""

LEADING = 3e-3
"""Share of E[1 / v] that three sums over a spectrum leave open where leading modes are other ones in every draw."""

SMOOTH_GRADIENTS = 0.1
"""Of what weights along modes of the data lose: 16 input channels have modes that shifts of the map do change."""

STRAYS = 0.05
"""Share of the mean square of all pairs: kernels behind sampled channels have one correction an offset."""

OPPOSED_WITHIN = 0.03
"""Of how gradients fall off with their channels' variance: the other channels' modes count as equal ones."""

LEVELS_AHEAD = 0.25
"""Of the variance of levels: it counts as one number all over a map, and is known at pairs of positions by offset."""

LEVELS_WINDOWED = 0.02
"""Of the variance of levels behind one layer: a batch of 80 has its own, and gains differ over positions."""

LEVELS_POOLED = 0.1
"""Of the variance of levels behind a pooling: positions that are alike count for more in a mean, and go together."""

WALK_BY_OFFSET = 0.08
"""Of a sum over pairs of places after twelve windows on 8 x 8 positions, whose edges are known by offset alone."""

SQUARES_APART = 0.1
"""Of what a square at one point has to do with slopes at another: odd parts count as linear, even ones as quadratic."""

LEVELS_TOGETHER = 5e-3
"""Averages over two log-normal levels, in what they have in common to first order, and of two samples not at all."""

POOLED_IMAGES = 0.02
"""Second moments and variances on maps of photographs: 11 pieces of 12 x 12 stand for 64 images, whose points' root
mean squares they have within 1%."""

WHOLE_MAP = 0.02
"""Mean over a map of images that are all carried whole: the bound on the forward second moment."""

SEAMS = 0.01
"""Products of drawn neighbours within a piece: windows across seams leave it .4% of negative directions, and as much
more of the others."""

ONE_ROOT = 0.02
"""Share that positions keep behind three layers of padded windows: what two keep is a product of one root each, while
in truth those at one edge lack the same taps."""

STANDING_POOLED, PIECES_POOLED = 0.03, 0.1
"""Mean over a map of crops of a photograph, of which a few stand for 32 (Monte Carlo's noise is .6%), or pieces behind
a stride (noise 2%; edges, whose own directions pieces do not have, leave up to 8%)."""

SMOOTH_STEP, SMOOTH_POOLED = 0.06, 0.1
"""A backward step, and what pooling keeps, of four saturating layers on crops of a photograph: Monte Carlo's noise is
2% of either, sampled channels leave as much, and steps differ by up to 3%."""

NAMED = 0.05
"""Range of six predictions of a gradient after five residual blocks, each with draws of its own: channels that are
sampled at the four points of a batch leave half a percent of noise a prediction, tanh behind a normalisation more."""

SMOOTH_EDGES = 0.02
"""What theory is meant to keep within forward."""
