"""Trainer callbacks: speed, skipped samples, tables and pages."""
