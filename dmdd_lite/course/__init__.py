"""What the notebooks call beside the method: experiments, and figures in `plots`."""
