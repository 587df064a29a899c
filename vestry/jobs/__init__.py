"""The kinds of job: the request and the result of each, and what all of them share."""
