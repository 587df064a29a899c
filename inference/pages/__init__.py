"""Reading pages of files that strangers made: what decodes them runs in child processes.

`children` and `scratch` are the parent's side, `child` is the children's, and the modules that `child`
imports know nothing of the rest of Vestry: no database, no key, no setting.
"""
