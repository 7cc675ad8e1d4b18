"""Training of OVS heads: SED on any labeled dataset, and the tiny models of the embedded benchmark."""
