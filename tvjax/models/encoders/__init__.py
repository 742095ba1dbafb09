"""Encoders with weights from elsewhere, which stand under the U-Net's decoder."""
