"""LipSDP with the same multipliers at every pixel: one small matrix per frequency instead of one large one."""

from __future__ import annotations

import lipmodel as lm


class FourierLipSDP(lm.Formulation):
    """LipSDP-Neuron (Fazlyab et al. 2019, arXiv 1906.04893) with one multiplier per channel, on a torus.

    Convolutional layers, extended to a torus on which nothing wraps around, commute with shifts, and so does the
    inequality: the Fourier transform takes it apart into one matrix for each frequency (as for norms of convolutions:
    Sedghi, Gupta & Long 2019, arXiv 1805.10408). Zero padding and cropping are neurons of slope 0, so that slopes are
    widened to contain 0. Strides are polyphase components. Dense layers at the end have a multiplier per neuron.
    """

    name, norms, default_norm = "fourier-lipsdp", {("2", "2")}, "2"
    period: int = lm.option(
        1, help="multipliers repeat after so many pixels: larger is mostly tighter and costs its 4th power"
    )
    pixels: bool = lm.option(True, help="prove small networks without the torus: the same multipliers, a smaller bound")

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Evidence:
        return lm.fourier_multipliers(system, period=self.period, pixels=self.pixels)
