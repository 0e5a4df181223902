"""Sound events in a recording of any length, by text: when each begins and ends. Begin with `finding.locate`."""
