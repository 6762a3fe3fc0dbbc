"""The claims of the papers on PFGM (arXiv 2209.11178) and PFGM++ (arXiv 2302.04265), each checked on two CPU cores."""
