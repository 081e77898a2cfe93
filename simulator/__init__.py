"""Numbers: networks, initializers, and the engines that predict and measure propagation."""
