"""The embedded set: aerial scenes that are drawn, so that everything runs without a download."""
