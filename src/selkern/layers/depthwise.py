"""`DepthwiseConv2d`: torch's, with a backward pass that dilation does not slow down."""

from __future__ import annotations

from torch import Tensor, nn

from selkern.ops.dilated import depthwise_conv2d


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise 3x3 convolution that trains faster where it is dilated: see `ops.dilated`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry = {self.stride, self.padding, self.dilation}
        square = all(isinstance(pair, tuple) and pair[0] == pair[1] for pair in geometry)
        if bias is None and square and self.padding_mode == "zeros" and self.out_channels == self.in_channels:
            return depthwise_conv2d(input, weight, self.stride[0], int(self.padding[0]), self.dilation[0])
        return super()._conv_forward(input, weight, bias)
