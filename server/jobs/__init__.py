"""Jobs: what was asked, what is running, what came out, and that nothing of it is lost.

Start at `service.py`; import `Service` and `open_service` from there. `queue` orders jobs, `worker` runs them, `store` and `gallery` keep
them, `events` tells everyone who listens.
"""
