"""The paper's claims on the embedded benchmark."""
