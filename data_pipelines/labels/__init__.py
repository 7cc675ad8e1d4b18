"""Labels of out-of-distribution (OOD) images: cached OVS labels, written once, and labels made by other tools."""
