"""Buses for workers."""

from pipecat_jobs.bus.routed import BusTap, RoutedBus

__all__ = ["BusTap", "RoutedBus"]
