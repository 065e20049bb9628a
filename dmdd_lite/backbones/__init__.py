"""Networks of timm with their weights, for teacher and student."""
