"""What users of such tools reported, and what hostile input did: each case with the tests that hold the right behaviour."""
