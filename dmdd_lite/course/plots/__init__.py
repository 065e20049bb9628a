"""Figures: functions that return a matplotlib `Figure`, in one style; one module per subject.

Images are uint8 (N, H, W, 3), anomaly maps float (N, H, W), masks bool (N, H, W). Anomaly maps are coloured
with `panels.COLOUR_MAP` over the range of a colour bar; a mask is always cyan, a decision always white.
Nothing is shown or left open in pyplot: the caller displays the `Figure`, or writes it with
`figures.save_figure`.
"""
