"""Further pre-training: texts in a fixed order, a LightningModule, one run in one folder."""
