MODES = {}
def modes_table(rows):
    return str(rows)
